"""The state of a chat: its turns, the history of each model, and how the next answer is made."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlhf_cli.commands.chat.config import ChatConfig
from rlhf_cli.commands.chat.model import Answer, ChatModel, Sink, Stopper
from rlhf_cli.data.records.fields import Message, Prompt
from rlhf_cli.errors import ConfigError


class AnswerView(Protocol):
    """Shows the answers to one message."""

    def __enter__(self) -> AnswerView: ...

    def __exit__(self, *error: object) -> None: ...

    def answer(self, heading: str) -> AbstractContextManager[Sink]:
        """Show the next answer: the block writes its text."""

    def note(self, text: str) -> None:
        """Add a remark to the last answer."""


@dataclass
class Turn:
    """A message and every model's answer to it.

    Attributes:
        user: the message.
        order: indices of the models in the order in which their answers are shown.
        hidden: the models' names are not known to the user.
        answers: answers[i] is that of model i.
        better: index of the model whose answer was called better, or None.
        follow: all models continue from the better answer.
    """

    user: str
    order: Sequence[int]
    hidden: bool = False
    answers: dict[int, Answer] = field(default_factory=dict)
    better: int | None = None
    follow: bool = False

    def continued(self, model: int) -> Answer:
        """The answer that a model continues from."""
        chosen = self.better if self.follow and self.better is not None else model
        return self.answers[chosen]

    def shown(self, position: int) -> int:
        """The model whose answer is shown at a position, from 1.

        Raises:
            ConfigError: there is no such position.
        """
        if 1 <= position <= len(self.order):
            return self.order[position - 1]
        choices = ", ".join(str(number + 1) for number in range(len(self.order)))
        raise ConfigError(f"answer: got {position}; need one of {choices}")


class Chat:
    """A chat with one or several models.

    Args:
        cfg: configuration; its sampling may be replaced between messages.
        models: the loaded models.

    Attributes:
        system: text of the system message; empty for none.
        turns: turns so far.
    """

    def __init__(self, cfg: ChatConfig, models: Sequence[ChatModel]) -> None:
        self.cfg, self.models = cfg, models
        self.system = cfg.system
        self.turns: list[Turn] = []
        self._samples = 0
        self._random = random.Random()  # not seeded: the order of the same chat would be known
        self._require_messages(cfg.system)

    @property
    def reads_messages(self) -> bool:
        """Whether the models read messages; else they continue text."""
        return self.models[0].reads_messages

    @property
    def last(self) -> Turn:
        """The last turn.

        Raises:
            ConfigError: there is none.
        """
        if not self.turns:
            raise ConfigError("chat: nothing was asked yet. Type a message first")
        return self.turns[-1]

    def set_system(self, text: str) -> None:
        """Replace the system message.

        Raises:
            ConfigError: the models continue text.
        """
        self._require_messages(text)
        self.system = text

    def _require_messages(self, system: str) -> None:
        if system and not self.reads_messages:
            raise ConfigError(
                "system: given, and the model continues text, without a chat template. "
                "Try template=always"
            )

    def prompt(self, model: int, user: str) -> Prompt:
        """What a model gets: its history and the new message."""
        if not self.reads_messages:
            said = (turn.user + turn.continued(model).text for turn in self.turns)
            return "".join([*said, user])
        messages = [Message("system", self.system)] if self.system else []
        for turn in self.turns:
            messages.append(Message("user", turn.user))
            messages.append(Message("assistant", turn.continued(model).text))
        return (*messages, Message("user", user))

    def ask(self, user: str, view: AnswerView, stopper: Stopper) -> Turn:
        """Have every model answer a message; the turn is added when all have.

        Args:
            user: the message.
            view: shows the answers.
            stopper: entered for each answer; says whether to stop it.

        Raises:
            DataError: a chat template refuses the messages.
            ConfigError: prompt and answer do not fit a model's positions.
        """
        order = list(range(len(self.models)))
        if self.cfg.blind:
            self._random.shuffle(order)
        turn = Turn(user, order, hidden=self.cfg.blind)
        sample, self._samples = self._samples, self._samples + 1
        with view:
            for position, index in enumerate(order):
                heading = self.heading(turn, position + 1)
                with stopper() as is_stopped, view.answer(heading) as sink:
                    turn.answers[index] = self.models[index].answer(
                        self.prompt(index, user),
                        self.cfg.sampling,
                        sample,
                        sink,
                        is_stopped,
                    )
                view.note(_remark(turn.answers[index]))
        self.turns.append(turn)
        return turn

    def retry(self, view: AnswerView, stopper: Stopper) -> Turn:
        """Answer the last message again, by other samples; the old answers stay after an error."""
        last = self.last
        del self.turns[-1]
        try:
            return self.ask(last.user, view, stopper)
        except BaseException:
            self.turns.append(last)
            raise

    def undo(self) -> Turn:
        """Forget the last message and its answers."""
        last = self.last
        del self.turns[-1]
        return last

    def clear(self) -> None:
        """Forget all messages; the system message stays."""
        self.turns.clear()

    def heading(self, turn: Turn, position: int) -> str:
        """How an answer is called; empty with one model."""
        if len(self.models) == 1:
            return ""
        name = self.models[turn.shown(position)].name
        return str(position) if turn.hidden else f"{position} {name}"

    def names(self, turn: Turn) -> str:
        """The models behind the answers of a turn, as `1 is sft, 2 is dpo`."""
        named = (self.models[index].name for index in turn.order)
        return ", ".join(f"{number} is {name}" for number, name in enumerate(named, start=1))

    def conversations(self) -> list[dict[str, Any]]:
        """The chat with each model as a row of data: `messages`, or `text`."""
        rows = []
        for index, model in enumerate(self.models):
            answer = self.last.answers[index]
            said = answer.prompt
            if isinstance(said, str):
                row: dict[str, Any] = {"text": said + answer.text}
            else:
                messages = (*said, Message("assistant", answer.text))
                row = {"messages": [message.to_dict() for message in messages]}
            rows.append({**row, "model": model.identity, "sampling": answer.sampling})
        return rows


def _remark(answer: Answer) -> str:
    if answer.stopped:
        return "stopped"
    if not answer.finished:
        return f"cut at max_new_tokens={answer.sampling['max_new_tokens']}"
    return "" if answer.text.strip() else "empty answer"

"""`rlhf chat`: talk to models in the terminal, and rate their answers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.text import Text

from rlhf_cli.commands.chat.chat import Chat, Turn
from rlhf_cli.commands.chat.config import ChatConfig
from rlhf_cli.commands.chat.feedback import Feedback
from rlhf_cli.commands.chat.keyboard import Keyboard, LineCleared, keys_kept
from rlhf_cli.commands.chat.model import (
    load_chat_models,
    never_stopped,
    stopping_on_interrupt,
)
from rlhf_cli.commands.chat.settings import short_keys
from rlhf_cli.commands.chat.slash import Quit, SlashCommands
from rlhf_cli.commands.chat.views import PlainView, choose_view
from rlhf_cli.console import logger, printable
from rlhf_cli.context import create_context
from rlhf_cli.data.records.fields import prompt_to_json
from rlhf_cli.data.report import pluralize
from rlhf_cli.errors import DataError, RlhfError, translate
from rlhf_cli.rollout.cuda_graphs import require_cuda
from rlhf_cli.runs.appended_rows import append_row, rater_name, require_appendable, timestamp


def run(cfg: ChatConfig) -> None:
    """Talk until the input ends."""
    feedback = Feedback(Path(cfg.output).expanduser(), rater_name(cfg.rater))
    if cfg.log:
        require_appendable(Path(cfg.log).expanduser(), "log")
    if sys.stdin.isatty() and sys.stdout.isatty():
        with keys_kept():
            _open(cfg, feedback).talk()
    else:
        _open(cfg, feedback).answer_lines(sys.stdin)


def _open(cfg: ChatConfig, feedback: Feedback) -> Conversation:
    """Load the models."""
    ctx = create_context(cfg.precision, cfg.sampling.seed, Path())
    require_cuda(cfg.sampling, ctx.device)
    chat = Chat(cfg, load_chat_models(cfg, ctx))
    _report(chat)
    return Conversation(chat, feedback, Console(highlight=False))


def _report(chat: Chat) -> None:
    """Log the memory of several models, and that a model reads no messages."""
    if len(chat.models) > 1:
        each = [model.megabytes for model in chat.models]
        parts = " + ".join(f"{size:,.0f}" for size in each)
        logger.info(f"memory of weights: {parts} = {sum(each):,.0f} MB; each model has its own")
    if not chat.reads_messages:
        names = ", ".join(model.name for model in chat.models)
        logger.info(
            f"{names}: no chat template is used; what you type is continued as text, without "
            "roles. Try template=always where the tokenizer has a template"
        )


class Conversation:
    """Carries what the user types to the models, and their answers to the screen.

    Args:
        chat: the chat.
        feedback: takes ratings.
        console: stdout.
    """

    def __init__(self, chat: Chat, feedback: Feedback, console: Console) -> None:
        self.chat, self.feedback, self.console = chat, feedback, console
        self.log = Path(chat.cfg.log).expanduser() if chat.cfg.log else None
        self.commands = SlashCommands(chat, feedback, self._retry)

    def talk(self) -> None:
        """Answer what is typed in the terminal, until Ctrl-D or `/quit`."""
        self.console.print("/help lists commands; Ctrl-D ends the chat")
        words = [*self.commands.commands, *(f"/set {key}=" for key in short_keys())]
        keyboard = Keyboard(self.chat.cfg.history, words)
        with suppress(Quit):
            for text in _typed(keyboard):
                self._handle(text)
        self._say_next()

    def answer_lines(self, stream: TextIO) -> None:
        """Answer each line of a file or pipe on stdout; none of them is a command.

        Raises:
            RlhfError: a line cannot be answered.
        """
        for text in _lines(stream):
            self._log(self.chat.ask(text, PlainView(), never_stopped))

    def _handle(self, text: str) -> None:
        """Run a command or answer a message; after an error the chat goes on."""
        try:
            if text.startswith("/"):
                said = self.commands.run(text)
            else:
                said = self._answer(text[1:] if text.startswith(" /") else text)
        except Quit:
            raise
        except Exception as error:
            known = translate(error)
            shown = error if isinstance(error, RlhfError) else known
            if shown is None:
                raise
            said = f"error: {shown}"
        if said:
            self.console.print(Text(printable(said)))

    def _answer(self, text: str) -> str:
        view = choose_view(self.console, len(self.chat.models))
        self._log(self.chat.ask(text, view, stopping_on_interrupt))
        return ""

    def _retry(self) -> None:
        view = choose_view(self.console, len(self.chat.models))
        self._log(self.chat.retry(view, stopping_on_interrupt))

    def _log(self, turn: Turn) -> None:
        if self.log is None:
            return
        for answer in turn.answers.values():
            row = {
                "prompt": prompt_to_json(answer.prompt),
                "response": answer.text,
                "model": answer.model,
                "sampling": answer.sampling,
                "finished": answer.finished,
                "time": timestamp(),
            }
            append_row(self.log, row, "log")

    def _say_next(self) -> None:
        """Say where the ratings are, and what reads them."""
        for path, count in self.feedback.counts().items():
            readers = "rlhf bco" if path == self.feedback.labels else "rlhf dpo or rlhf reward"
            self.console.print(Text(f"{pluralize(count, 'row')} in {path}, for {readers}"))


def _typed(keyboard: Keyboard) -> Iterator[str]:
    """The messages of the user, without blank ones, until Ctrl-D."""
    while True:
        try:
            text = keyboard.read()
        except LineCleared:
            continue
        except EOFError:
            return
        if text.strip():
            yield text


def _lines(stream: TextIO) -> Iterator[str]:
    """The lines of a stream, without blank ones.

    Raises:
        DataError: they are not UTF-8.
    """
    try:
        for line in stream:
            text = line.rstrip("\r\n")
            text.encode()  # half a character, where Python reads bytes it cannot decode as such
            if text.strip():
                yield text
    except UnicodeError as error:
        raise DataError("standard input: not UTF-8; need text in UTF-8") from error

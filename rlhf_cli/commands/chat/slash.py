"""Commands inside the chat, which begin with a slash."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlhf_cli.commands.chat.chat import Chat
from rlhf_cli.commands.chat.feedback import Feedback
from rlhf_cli.commands.chat.settings import describe_settings, with_settings
from rlhf_cli.config.suggest import nearest
from rlhf_cli.data.report import pluralize
from rlhf_cli.errors import ConfigError, DataError
from rlhf_cli.runs.outputs import open_output
from rlhf_cli.runs.run_files import format_json_lines


class Quit(Exception):
    """The user ends the chat."""


@dataclass(frozen=True)
class SlashCommand:
    """A command of the chat.

    Attributes:
        usage: as it is typed.
        purpose: for `/help`.
        run: called with the text after the name; returns what to print.
    """

    usage: str
    purpose: str
    run: Callable[[str], str]

    @property
    def name(self) -> str:
        """The first word."""
        return self.usage.split()[0]


class SlashCommands:
    """The commands of one chat.

    Args:
        chat: the chat.
        feedback: takes ratings.
        retry: asks the last message again and shows the answers.
    """

    def __init__(self, chat: Chat, feedback: Feedback, retry: Callable[[], None]) -> None:
        self.chat, self.feedback, self._ask_again = chat, feedback, retry
        several = len(chat.models) > 1
        listed = [*self._of_chat(), *self._of_ratings(" N" if several else "")]
        listed += self._of_comparisons() if several else []
        listed.append(SlashCommand("/quit", "End the chat, as Ctrl-D does.", self._quit))
        self.commands = {command.name: command for command in listed}

    def _of_chat(self) -> list[SlashCommand]:
        return [
            SlashCommand("/help", "This list.", self._help),
            SlashCommand("/system TEXT", "Set or remove the system message.", self._system),
            SlashCommand("/set KEY=VALUE", "Change sampling: /set temperature=0.7.", self._set),
            SlashCommand("/show", "Models, system message, sampling, history.", self._show),
            SlashCommand("/retry", "Answer the last message again.", self._retry),
            SlashCommand("/undo", "Forget the last message and its answer.", self._undo),
            SlashCommand("/clear", "Forget all messages.", self._clear),
            SlashCommand("/save FILE", "Write the chat as rows for rlhf sft.", self._save),
        ]

    def _of_ratings(self, which: str) -> list[SlashCommand]:
        return [
            SlashCommand(f"/good{which}", "The answer is good: a row for rlhf bco.", self._good),
            SlashCommand(f"/bad{which}", "The answer is bad: a row for rlhf bco.", self._bad),
        ]

    def _of_comparisons(self) -> list[SlashCommand]:
        purpose = "Answer N is better: rows for rlhf dpo and reward."
        return [
            SlashCommand("/better N", purpose, self._better),
            SlashCommand("/both-bad", "Every answer is bad: rows for rlhf bco.", self._all_bad),
        ]

    def run(self, line: str) -> str:
        """Run a command, and return what to print.

        Raises:
            Quit: the chat is to end.
            ConfigError: no such command, or its argument is refused.
            DataError: a file cannot be written.
        """
        name, _, rest = line.strip().partition(" ")
        if name not in self.commands:
            close = nearest(name, self.commands) or "/help"
            raise ConfigError(f"{name}: no such command. Try {close}, or a space before the text")
        return self.commands[name].run(rest.strip())

    def _help(self, rest: str) -> str:
        width = max(len(command.usage) for command in self.commands.values())
        lines = [f"{one.usage:<{width}}  {one.purpose}" for one in self.commands.values()]
        keys = "Alt-Enter or a backslash at the end starts a new line; Ctrl-C stops an answer."
        return "\n".join([*lines, keys])

    def _system(self, rest: str) -> str:
        self.chat.set_system(rest)
        return f"system: {rest}" if rest else "no system message"

    def _set(self, rest: str) -> str:
        if rest:
            self.chat.cfg = with_settings(self.chat.cfg, _words(rest))
        return describe_settings(self.chat.cfg)

    def _show(self, rest: str) -> str:
        chat, rows = self.chat, self.feedback.counts()
        lines = [
            f"models: {', '.join(f'{one.name} ({one.megabytes:,.0f} MB)' for one in chat.models)}",
            f"system: {chat.system or '-'}",
            f"sampling: {describe_settings(chat.cfg)}",
            f"history: {pluralize(len(chat.turns), 'message')}",
        ]
        lines += [f"ratings: {pluralize(count, 'row')} in {path}" for path, count in rows.items()]
        return "\n".join(lines)

    def _retry(self, rest: str) -> str:
        if self.chat.cfg.sampling.temperature == 0 and self.chat.last:
            raise ConfigError(
                "retry: got temperature=0, at which the answer would be the same. "
                "Try /set temperature=0.7"
            )
        self._ask_again()
        return ""

    def _undo(self, rest: str) -> str:
        forgotten = self.chat.undo()
        return f"forgot: {forgotten.user}"

    def _clear(self, rest: str) -> str:
        count = len(self.chat.turns)
        self.chat.clear()
        return f"forgot {pluralize(count, 'message')}"

    def _save(self, rest: str) -> str:
        path = Path(rest).expanduser()
        if not rest or path.suffix != ".jsonl":
            raise ConfigError(f"save: got {rest or 'no file'}; need a .jsonl. Try /save chat.jsonl")
        if path.exists():
            raise DataError(f"save: {path} exists; need another name")
        rows = self.chat.conversations()
        with open_output(path) as write:
            write(format_json_lines(rows))
        return f"wrote {pluralize(len(rows), 'row')} to {path}"

    def _good(self, rest: str) -> str:
        return self._label(rest, good=True)

    def _bad(self, rest: str) -> str:
        return self._label(rest, good=False)

    def _label(self, rest: str, *, good: bool) -> str:
        turn = self.chat.last
        only = "1" if len(self.chat.models) == 1 else ""
        index = turn.shown(_number(rest or only, "/good 1" if good else "/bad 1"))
        return self.feedback.label(turn.answers[index], good=good)

    def _better(self, rest: str) -> str:
        turn = self.chat.last
        index = turn.shown(_number(rest, "/better 1"))
        others = [other for other in turn.order if other != index]
        done = [self.feedback.prefer(turn.answers[index], turn.answers[other]) for other in others]
        turn.better, turn.follow = index, self.chat.cfg.shared_history
        return "\n".join([*dict.fromkeys(done), *self._revealed()])

    def _all_bad(self, rest: str) -> str:
        turn = self.chat.last
        done = [self.feedback.label(turn.answers[index], good=False) for index in turn.order]
        return "\n".join([*dict.fromkeys(done), *self._revealed()])

    def _revealed(self) -> list[str]:
        turn = self.chat.last
        if not turn.hidden:
            return []
        turn.hidden = False
        return [self.chat.names(turn)]

    def _quit(self, rest: str) -> str:
        raise Quit


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"set: got {text}: {error}. Try /set temperature=0.7") from None


def _number(text: str, example: str) -> int:
    if text.isdecimal():
        return int(text)
    raise ConfigError(f"answer: got {text or 'none'}; need its number. Try {example}")

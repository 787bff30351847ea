"""The secrets of this command: kept out of what it writes and says.

`log.txt`: what a run says, kept in its folder; and no secret on the screen or in the file.
"""

import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from rlhf_cli.config.references import References, environment_values, with_references
from rlhf_cli.errors import RlhfError
from rlhf_cli.runs.run_files import LOG

HIDDEN = "***"
SHORTEST = 6
"""Shorter values are not looked for in messages, where they would be found in ordinary words."""

_references: dict[str, str] = {}


def begin(references: References) -> None:
    """Start a command, or the part of a rank in it, whose configuration has these references."""
    _references.clear()
    _references.update(references)


def references() -> dict[str, str]:
    """Key -> the text that is written in place of its value."""
    return dict(_references)


def hide(tree: dict[str, Any]) -> dict[str, Any]:
    """A configuration with references in place of secrets from the environment."""
    hidden: dict[str, Any] = with_references(tree, _references)
    return hidden


def redact(text: str) -> str:
    """A text without the secrets of the environment that the configuration refers to."""
    for value in environment_values(_references):
        if len(value) >= SHORTEST:
            text = text.replace(value, HIDDEN)
    return text


_CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
"""Colours, moves and erasures of a terminal (ECMA-48, 5.4)."""


class _Stream:
    """Passes text on to a stream, and its whole lines to a log, without secrets.

    Of a line that was written over on the terminal, after a carriage return, the log gets the last
    form. All other attributes are those of the stream.
    """

    def __init__(self, stream: TextIO, log: TextIO | None) -> None:
        self.stream, self.log, self.line = stream, log, ""

    def write(self, text: str) -> int:
        shown = redact(text)
        self.stream.write(shown)
        if self.log is not None:
            self._keep(self.log, shown)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def _keep(self, log: TextIO, text: str) -> None:
        *lines, rest = (self.line + text).split("\n")
        self.line = rest.rpartition("\r")[2]
        with suppress(OSError):  # a full disk is reported by what the run cannot do without
            log.writelines(f"{_last_form(line)}\n" for line in lines)
            log.flush()

    def end_log(self) -> None:
        """Log a last line that has no end; from then on the stream is only passed on to."""
        if self.log is not None and _last_form(self.line):
            self._keep(self.log, "\n")
        self.log = None  # a handler of a library may hold the stream for longer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _last_form(line: str) -> str:
    return _CONTROL_SEQUENCE.sub("", line.rpartition("\r")[2])


@contextmanager
def redacted(log: TextIO | None = None) -> Iterator[None]:
    """Let no secret be said inside; what is said goes to a log too, where one is given.

    Warnings and log records are written to the same streams.
    """
    before = sys.stdout, sys.stderr
    streams = [_Stream(stream, log) for stream in before]
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in streams:
            stream.end_log()


@contextmanager
def logged(folder: Path, *, with_error: bool = True) -> Iterator[None]:
    """Append what is said inside to a run's log.

    Args:
        folder: of the run.
        with_error: append an error that ends the block too, which is printed later.

    Raises:
        OSError: the file cannot be made.
    """
    with (folder / LOG).open("a", encoding="utf-8", newline="\n") as file:
        try:
            with redacted(file):
                yield
        except BaseException as error:
            if with_error:
                with suppress(OSError):
                    file.write(redact(_in_words(error)))
            raise


def _in_words(error: BaseException) -> str:
    """An error as the command line prints it."""
    if isinstance(error, RlhfError):
        return "".join(f"error: {line}\n" for line in str(error).split("\n"))
    if isinstance(error, KeyboardInterrupt):
        return "interrupted\n"
    return "".join(traceback.format_exception(error))

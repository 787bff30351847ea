"""A run's `log.txt`, and the removal of secrets from what a command prints or saves."""

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

REDACTED = "***"
MIN_SECRET_LENGTH = 6
"""Characters; shorter values are not redacted, because ordinary words contain them."""

_references: dict[str, str] = {}
"""Key -> environment reference (`${oc.env:NAME}`), of this command."""


def set_secret_references(found: References) -> None:
    """Set the secret references of the configuration; called once per command and rank."""
    _references.clear()
    _references.update(found)


def secret_references() -> dict[str, str]:
    """Return the secret references: key -> text that is saved in place of the value."""
    return dict(_references)


def hide_secrets(tree: dict[str, Any]) -> dict[str, Any]:
    """Replace secrets from the environment in a configuration by their references."""
    hidden: dict[str, Any] = with_references(tree, _references)
    return hidden


def redact(text: str) -> str:
    """Replace the secrets that the configuration refers to in a text."""
    for value in environment_values(_references):
        if len(value) >= MIN_SECRET_LENGTH:
            text = text.replace(value, REDACTED)
    return text


_CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
"""Terminal control sequences: colors, cursor moves, erasures (ECMA-48, 5.4)."""


class _Stream:
    """Forwards redacted text to a stream, and its complete lines to a log.

    Of a line that is overwritten on the terminal (after a carriage return), the log gets the last
    version. All other attributes are those of the stream.
    """

    def __init__(self, stream: TextIO, log: TextIO | None) -> None:
        self.stream, self.log, self.line = stream, log, ""

    def write(self, text: str) -> int:
        shown = redact(text)
        self.stream.write(shown)
        if self.log is not None:
            self._write_log(self.log, shown)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def _write_log(self, log: TextIO, text: str) -> None:
        *lines, rest = (self.line + text).split("\n")
        self.line = rest.rpartition("\r")[2]
        with suppress(OSError):  # a full disk is reported where the run writes its results
            log.writelines(f"{_last_version(line)}\n" for line in lines)
            log.flush()

    def end_log(self) -> None:
        """Log a last line without a line end, then only forward to the stream."""
        if self.log is not None and _last_version(self.line):
            self._write_log(self.log, "\n")
        self.log = None  # a library's handler may keep a reference to this stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _last_version(line: str) -> str:
    return _CONTROL_SEQUENCE.sub("", line.rpartition("\r")[2])


@contextmanager
def redacted(log: TextIO | None = None) -> Iterator[None]:
    """Redact stdout and stderr inside the block, and copy them to a log if one is given.

    Warnings and log records go through the same streams.
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
    """Append stdout and stderr of the block to a run's `log.txt`.

    Args:
        folder: of the run.
        with_error: also append an error that ends the block, which is printed later.

    Raises:
        OSError: the file cannot be created.
    """
    with (folder / LOG).open("a", encoding="utf-8", newline="\n") as file:
        try:
            with redacted(file):
                yield
        except BaseException as error:
            if with_error:
                with suppress(OSError):
                    file.write(redact(_format_error(error)))
            raise


def _format_error(error: BaseException) -> str:
    """Format an error as the command line prints it."""
    if isinstance(error, RlhfError):
        return "".join(f"error: {line}\n" for line in str(error).split("\n"))
    if isinstance(error, KeyboardInterrupt):
        return "interrupted\n"
    return "".join(traceback.format_exception(error))

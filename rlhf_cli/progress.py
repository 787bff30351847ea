"""Progress on stderr: a progress bar, and lines with what is done and the time left."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Generator, Iterable
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import Progress

from rlhf_cli.console import logger


class _HasSize(Protocol):
    @property
    def size(self) -> int: ...


Row = TypeVar("Row", bound=_HasSize)


def track(rows: Iterable[Row], total: int) -> Generator[Row, None, None]:
    """Yield the rows, and show a bar of their bytes on a terminal unless messages are muted.

    Args:
        rows: rows with their size in bytes.
        total: bytes of all rows.
    """
    console = Console(stderr=True)
    hidden = logger.disabled or not console.is_terminal
    with Progress(console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("tokenizing", total=total)
        for row in rows:
            yield row
            bar.advance(task, row.size)


class StatusLine:
    """A line on stderr that the next one replaces on a terminal; elsewhere each is printed."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.unfinished = False

    def show(self, text: str) -> None:
        """Print the text, on a terminal in place of the text before."""
        start, end = ("\r\x1b[K", "") if self.live else ("", "\n")
        if self.live:  # a line that wraps cannot be replaced
            text = text[: shutil.get_terminal_size().columns - 1]
        print(f"{start}{text}", end=end, file=sys.stderr, flush=True)
        self.unfinished = self.live

    def end(self) -> None:
        """Keep the text; further output begins on the next line."""
        if self.unfinished:
            print(file=sys.stderr, flush=True)
            self.unfinished = False


class ProgressCount:
    """A status line with a count out of a total, and the time left.

    Args:
        unit: what is counted, in the plural.
        total: number of units.
    """

    QUIET_SECONDS = 10.0

    def __init__(self, unit: str, total: int) -> None:
        self.unit, self.total, self.done = unit, total, 0
        self.began = self.shown = time.monotonic()
        self.line = StatusLine()

    def add(self, count: int) -> None:
        """Add to the count; print it at most every second, or `QUIET_SECONDS` off a terminal."""
        self.done += count
        now = time.monotonic()
        quiet = 1.0 if self.line.live else self.QUIET_SECONDS
        if now - self.shown < quiet or not self.done:
            return
        self.shown = now
        left = format_duration((now - self.began) / self.done * (self.total - self.done))
        self.line.show(f"{self.done}/{self.total} {self.unit}  left {left}")

    def end_line(self) -> None:
        """End the status line; further output begins on the next line."""
        self.line.end()

    def __enter__(self) -> ProgressCount:
        return self

    def __exit__(self, *error: object) -> None:
        self.end_line()


def format_duration(seconds: float) -> str:
    """Format a duration as minutes and seconds, with hours if there are any."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

"""Progress on stderr: a bar where that is a terminal, and lines of what is done and left."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterable
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import Progress


class _HasSize(Protocol):
    @property
    def size(self) -> int: ...


Row = TypeVar("Row", bound=_HasSize)


def track(rows: Iterable[Row], total: int) -> Generator[Row, None, None]:
    """The rows, with a bar of their bytes out of `total`."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("tokenizing", total=total)
        for row in rows:
            yield row
            bar.advance(task, row.size)


class LiveLine:
    """A line on stderr: on a terminal the next one replaces it, elsewhere every one stands."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.unfinished = False

    def show(self, text: str) -> None:
        """Print the text, over the one before where that is possible."""
        start, end = ("\r\x1b[K", "") if self.live else ("", "\n")
        print(f"{start}{text}", end=end, file=sys.stderr, flush=True)
        self.unfinished = self.live

    def end(self) -> None:
        """Leave the text standing; what is printed next begins below it."""
        if self.unfinished:
            print(file=sys.stderr, flush=True)
            self.unfinished = False


class ProgressCount:
    """A line with what is done of a count, and the time left: on a terminal always the same one.

    Args:
        unit: what is counted, in the plural.
        total: how many there are.
    """

    QUIET_SECONDS = 10.0

    def __init__(self, unit: str, total: int) -> None:
        self.unit, self.total, self.done = unit, total, 0
        self.began = self.shown = time.monotonic()
        self.line = LiveLine()

    def add(self, count: int) -> None:
        """Count more; says so after some seconds of quiet, and never of what ends before."""
        self.done += count
        now = time.monotonic()
        quiet = 1.0 if self.line.live else self.QUIET_SECONDS
        if now - self.shown < quiet or not self.done:
            return
        self.shown = now
        left = clock((now - self.began) / self.done * (self.total - self.done))
        self.line.show(f"{self.done}/{self.total} {self.unit}  left {left}")

    def end_line(self) -> None:
        """Let what is printed next begin below the line."""
        self.line.end()

    def __enter__(self) -> ProgressCount:
        return self

    def __exit__(self, *error: object) -> None:
        self.end_line()


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

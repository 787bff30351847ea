"""A progress bar on stderr, where that is a terminal."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from rich.console import Console
from rich.progress import Progress

from rlhf_cli.data.reading.raw import RawRow


def track(rows: Iterable[RawRow], total: int) -> Generator[RawRow, None, None]:
    """The rows, with a bar of their bytes out of `total`."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("tokenizing", total=total)
        for row in rows:
            yield row
            bar.advance(task, row.size)

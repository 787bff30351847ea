"""How answers are shown while they are generated: plain, one below the other, or in columns."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rlhf_cli.commands.chat.chat import AnswerView
from rlhf_cli.commands.chat.model import Sink
from rlhf_cli.commands.columns import GAP, column_width, fits_columns
from rlhf_cli.console import printable


def choose_view(console: Console, answers: int) -> AnswerView:
    """Choose how the answers to the next message are shown.

    Args:
        console: the terminal; its present width decides.
        answers: their number.
    """
    if not console.is_terminal:
        return PlainView()
    if fits_columns(console.width, answers):
        return ColumnsView(console)
    return StackedView(console)


class PlainView:
    """Writes answers to stdout as they are, for a file or another program."""

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @contextmanager
    def answer(self, heading: str) -> Iterator[Sink]:
        """Write the heading, if there is one, and the answer on lines of their own."""
        if heading:
            print(f"{heading}:")
        try:
            yield lambda text: print(printable(text), end="", flush=True)
        finally:
            print(flush=True)

    def note(self, text: str) -> None:
        """Write a remark to stderr."""
        if text:
            print(f"({text})", file=sys.stderr, flush=True)


class StackedView:
    """Streams answers to a terminal, one below the other, and wraps them between words."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __enter__(self) -> StackedView:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @contextmanager
    def answer(self, heading: str) -> Iterator[Sink]:
        """Write the heading, if there is one, and stream the answer."""
        if heading:
            self.console.print(Text(heading, "bold"))
        wrapper = WordWrapper(self.console)
        try:
            yield wrapper.write
        finally:
            wrapper.end()

    def note(self, text: str) -> None:
        """Print a remark below the answer."""
        if text:
            self.console.print(Text(f"({text})", "dim"))


class WordWrapper:
    """Streams text to a terminal with line breaks between words; long words are left whole.

    Args:
        console: its width is read anew for every word.
    """

    def __init__(self, console: Console) -> None:
        self.console, self.column = console, 0

    def write(self, text: str) -> None:
        """Write the next piece: whole words, each with the space after it."""
        for part in re.findall(r"\n|[^\S\n]+|[^\s]+", printable(text)):
            if part == "\n":
                self._put("\n", 0)
            elif part.isspace():
                self._add(part, "")
            else:
                self._add(part, part)

    def _add(self, part: str, at_line_start: str) -> None:
        """Write a word or spaces, or after a line break what is to begin the next line."""
        width = cell_len(part.expandtabs(8))
        if self.column and self.column + width > self.console.width:
            self._put("\n", 0)
            part = at_line_start
            width = cell_len(part)
        self._put(part, (self.column + width) if width <= self.console.width else 1)

    def _put(self, text: str, column: int) -> None:
        self.console.file.write(text)
        self.console.file.flush()
        self.column = column

    def end(self) -> None:
        """End the last line."""
        if self.column:
            self._put("\n", 0)


class ColumnsView:
    """Streams answers into columns; the whole table stays when all are complete."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.headings: list[str] = []
        self.texts: list[str] = []
        self.notes: list[str] = []
        self.live = Live(
            console=console, transient=True, auto_refresh=False, vertical_overflow="crop"
        )

    def __enter__(self) -> ColumnsView:
        self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()
        if self.texts:
            self.console.print(self._table(None))

    @contextmanager
    def answer(self, heading: str) -> Iterator[Sink]:
        """Stream an answer into the next column."""
        self.headings.append(heading)
        self.texts.append("")
        self.notes.append("")

        def write(text: str) -> None:
            self.texts[-1] += printable(text)
            self.live.update(self._table(self.console.height - 2), refresh=True)

        yield write

    def note(self, text: str) -> None:
        """Add a remark below the column."""
        self.notes[-1] = f"({text})" if text else ""

    def _table(self, lines: int | None) -> Table:
        """The columns; only the last `lines` lines of each while answers grow."""
        table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
        width = column_width(self.console.width, max(2, len(self.texts)))
        cells = []
        for heading, text, note in zip(self.headings, self.texts, self.notes, strict=True):
            table.add_column(Text(heading, "bold", overflow="fold"), width=width, overflow="fold")
            body = Text(text.strip("\n")).wrap(self.console, width)
            shown = body if lines is None else body[-max(1, lines - 1) :]
            cell = Text("\n").join(shown)
            cells.append(cell.append(f"\n{note}", "dim") if note else cell)
        table.add_row(*cells)
        return table

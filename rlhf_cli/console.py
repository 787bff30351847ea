"""What commands print: messages through the logger of the package, tables, boxes, and JSON."""

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import Any, TextIO
from unicodedata import category


class _StderrHandler(logging.Handler):
    """Prints each message on `sys.stderr` as it is then: `log.txt` and tests replace the stream."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


logger = logging.getLogger("rlhf_cli")
"""Messages for the user, on stderr; results go to stdout."""

logger.setLevel(logging.INFO)
logger.propagate = False
logger.addHandler(_StderrHandler())


_JOINERS = "\u200c\u200d"
"""Zero-width joiners, which emoji and some scripts need and which move no cursor."""


def printable(text: str) -> str:
    r"""Write control characters as `\x1b`, so that text from a file or model moves no cursor.

    Line breaks, tabs, spaces of every width, and joiners are kept.
    """
    return "".join(c if _is_harmless(c) else ascii(c)[1:-1] for c in text)


def _is_harmless(character: str) -> bool:
    kept = character in "\n\t" or character in _JOINERS or category(character) == "Zs"
    return kept or character.isprintable()


@contextmanager
def muted() -> Iterator[None]:
    """Log nothing inside the block, because the same was logged before."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@contextmanager
def only_errors() -> Iterator[TextIO]:
    """Discard what this process and its children write on stderr inside the block.

    Yields:
        The stream of errors, which is shown.
    """
    before = sys.stderr
    with os.fdopen(os.dup(2), "w", encoding="utf-8") as shown, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        sys.stderr = nowhere
        try:
            yield before if before is not sys.__stderr__ else shown
        finally:
            sys.stderr = before
            os.dup2(shown.fileno(), 2)


class _Output:
    """How results are printed: as text, or with `--json` as one JSON object."""

    as_json = False


def print_results_as_json(use: bool) -> None:
    """Choose how `print_result` prints, for this command."""
    _Output.as_json = use


def print_result(text: str, value: Any) -> None:
    """Print the result of a command on stdout: the text, or the value as JSON with `--json`."""
    if _Output.as_json:
        print(json.dumps(value, ensure_ascii=False, default=str), flush=True)
    elif text:
        print(text, flush=True)


def print_box(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print names and values on stderr: in a box on a terminal, else as lines below the title."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        width = max(len(name) for name, _ in rows) + 2
        logger.info("\n".join([title, *(f"  {name:<{width}}{value}" for name, value in rows)]))
        return
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(Text(name, style="dim"), Text(value, overflow="fold"))
    console.print(Panel(table, title=Text(title, style="bold"), title_align="left", expand=False))


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of cells as left-aligned columns, two spaces apart; the same when piped."""
    from rich.console import Console  # here, so that other commands need not load it
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(Text(cell, no_wrap=True) for cell in row))
    console = Console(file=StringIO(), width=_WIDTH, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


_WIDTH = 10_000
"""Characters; wider than any table, so that no cell is cut."""

MAX_CHARACTERS = 400
"""Characters that are shown of a long text."""


def shorten(text: str, max_characters: int = MAX_CHARACTERS) -> str:
    """Remove the middle of a long text, and escape terminal control characters."""
    half = max_characters // 2
    short = text if len(text) <= max_characters else f"{text[:half]} ... {text[-half:]}"
    return printable(short)

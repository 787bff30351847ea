"""What commands print: messages through the logger of the package, and tables of text."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
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

"""`data.split`: a split by name, a slice of its rows, or both."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlhf_cli.errors import ConfigError

_SPLIT = re.compile(r"(?P<name>[\w.-]*)(\[(?P<start>-?\d+%?)?:(?P<end>-?\d+%?)?\])?")


@dataclass(frozen=True)
class Split:
    """`train[10%:20%]`: name `train`, start `10%`, end `20%`; each may be empty."""

    name: str = ""
    start: str = ""
    end: str = ""

    @property
    def sliced(self) -> bool:
        """Whether some rows may be left out."""
        return bool(self.start or self.end)

    def bounds(self, rows: int) -> tuple[int, int]:
        """First row and the one after the last, from 0, of so many rows."""
        start = _position(self.start, rows) if self.start else 0
        end = _position(self.end, rows) if self.end else rows
        return start, max(start, end)


def parse_split(text: str) -> Split:
    """Read a split as `datasets` writes it.

    Raises:
        ConfigError: it is none.
    """
    found = _SPLIT.fullmatch(text)
    if not found:
        raise ConfigError(
            f"data.split: got {text}; need a name, a slice of rows or both. "
            "Try data.split=train[:10%]"
        )
    return Split(found["name"], found["start"] or "", found["end"] or "")


def _position(text: str, rows: int) -> int:
    """A row number, or a share rounded to the nearest row; below 0 it counts from the end."""
    share = text.endswith("%")
    position = round(int(text[:-1]) * rows / 100) if share else int(text)
    return min(max(position + rows if position < 0 else position, 0), rows)

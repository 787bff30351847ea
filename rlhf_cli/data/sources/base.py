"""Rows as a file or data set holds them, before anything is known about their meaning."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rlhf_cli.data.config import Source
from rlhf_cli.data.report import Malformed, Refused
from rlhf_cli.errors import ConfigError

Side = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row of a file or hub data set.

    Attributes:
        file: its name.
        line: 1 for the first; in `.parquet`, `.json` and hub data the number of the row.
        found: the columns, or why there are none to read.
        size: bytes in the file, for the progress bar.
        untyped: the values are text, whatever they mean, as in `.csv`.
        source: index of the source in `data.path`.
        copy: how often the row was drawn before, for sources of a weight above 1.
    """

    file: str
    line: int
    found: dict[str, Any] | Malformed | Refused
    size: int = 0
    untyped: bool = False
    source: int = 0
    copy: int = 0

    @property
    def where(self) -> str:
        """`file:line`, for messages."""
        return f"{self.file}:{self.line}"

    def columns(self) -> dict[str, Any]:
        """The row's columns; a document has one, `text`.

        Raises:
            Malformed: the row cannot be read.
            Refused: there is nothing to learn from it.
        """
        if isinstance(self.found, Malformed | Refused):
            raise self.found
        return self.found


@dataclass(frozen=True)
class RowSource:
    """Rows that can be read again and again.

    Attributes:
        settings: how they are to be read.
        names: of the files.
        skipped: names in the folder that are not read.
        content: changes with the rows.
        size: bytes of all files, for the progress bar.
        rows: reads them.
    """

    settings: Source
    names: tuple[str, ...]
    skipped: tuple[str, ...]
    content: str
    size: int
    rows: Callable[[], Iterator[RawRow]]


def show_value(value: Any) -> str:
    """A value in a few words, for a message."""
    if isinstance(value, dict):
        return f"an object with keys {sorted(map(str, value))[:8]}"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, str):
        value = _shortened(value)
    return _shortened(json.dumps(value, default=str), 80)


def _shortened(text: str, most: int = 40) -> str:
    return text if len(text) <= most else text[:most] + "..."


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

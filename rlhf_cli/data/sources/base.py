"""Raw rows, the data sources that yield them, and `data.split`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from rlhf_cli.data.config import SourceConfig
from rlhf_cli.data.report import MalformedRow, RefusedRow
from rlhf_cli.errors import ConfigError

DefaultSplit = Literal["train", "test"]
"""Split to read if `data.split` names none: `train` of `data.path`, `test` of `data.eval`."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row of a file or data set, before its columns are interpreted.

    Attributes:
        file: file name.
        line: line number from 1; in `.parquet`, `.json` and `datasets` data the row number.
        parsed: columns by name, or the error that prevents reading them.
        size: bytes in the file, for the progress bar.
        untyped: whether all values are text, as in `.csv`.
        source: index of the data source in `data.path`.
        repeat: how often the row was sampled before, for sources of a weight above 1.
    """

    file: str
    line: int
    parsed: dict[str, Any] | MalformedRow | RefusedRow
    size: int = 0
    untyped: bool = False
    source: int = 0
    repeat: int = 0

    @property
    def location(self) -> str:
        """`file:line`, for messages."""
        return f"{self.file}:{self.line}"

    def columns(self) -> dict[str, Any]:
        """Return the columns by name; a document has one, `text`.

        Raises:
            MalformedRow: the row cannot be read.
            RefusedRow: the row cannot be trained on.
        """
        if isinstance(self.parsed, MalformedRow | RefusedRow):
            raise self.parsed
        return self.parsed


@dataclass(frozen=True)
class DataSource:
    """A file, folder or data set whose rows can be read repeatedly.

    Attributes:
        settings: how its rows are read.
        names: file names.
        skipped: names of files in the folder that are not read.
        compute_fingerprint: hashes the rows, or what stands for them.
        size: bytes of all files, for the progress bar.
        rows: reads all rows in order.
    """

    settings: SourceConfig
    names: tuple[str, ...]
    skipped: tuple[str, ...]
    compute_fingerprint: Callable[[], str]
    size: int
    rows: Callable[[], Iterator[RawRow]]

    @cached_property
    def fingerprint(self) -> str:
        """Text that changes when the rows change; files are read for it at first use."""
        return self.compute_fingerprint()


def describe_value(value: Any) -> str:
    """Describe a value briefly, for messages."""
    if isinstance(value, dict):
        return f"an object with keys {sorted(map(str, value))[:8]}"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, str):
        value = _shorten(value)
    return _shorten(json.dumps(value, default=str), 80)


def _shorten(text: str, max_length: int = 40) -> str:
    return text if len(text) <= max_length else text[:max_length] + "..."


_SPLIT = re.compile(r"(?P<name>[\w.-]*)(\[(?P<start>-?\d+%?)?:(?P<end>-?\d+%?)?\])?")


@dataclass(frozen=True)
class Split:
    """A parsed `data.split`: `train[10%:20%]` has name `train`, start `10%` and end `20%`.

    Each part may be empty.
    """

    name: str = ""
    start: str = ""
    end: str = ""

    @property
    def sliced(self) -> bool:
        """Whether the split has a slice of rows."""
        return bool(self.start or self.end)

    def bounds(self, rows: int) -> tuple[int, int]:
        """Return the slice [start, end) of a data set of `rows` rows."""
        start = _row_index(self.start, rows) if self.start else 0
        end = _row_index(self.end, rows) if self.end else rows
        return start, max(start, end)


def parse_split(text: str) -> Split:
    """Parse a split in the notation of `datasets`.

    Raises:
        ConfigError: the text is not a split.
    """
    found = _SPLIT.fullmatch(text)
    if not found:
        raise ConfigError(
            f"data.split: got {text}; need a name, a slice of rows or both. "
            "Try data.split=train[:10%]"
        )
    return Split(found["name"], found["start"] or "", found["end"] or "")


def _row_index(text: str, rows: int) -> int:
    """Row index from a number or a percentage; negative values count from the end."""
    index = round(int(text[:-1]) * rows / 100) if text.endswith("%") else int(text)
    return min(max(index + rows if index < 0 else index, 0), rows)

"""Which rows `rlhf data show` shows: `row=N`, `rows=N`, `rows=A..B`, each also as `FILE:N`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rlhf_cli.data.records.reader import Outcome
from rlhf_cli.data.report import pluralize
from rlhf_cli.data.sources.base import RawRow
from rlhf_cli.errors import ConfigError

DEFAULT_ROWS = 3

_ROW = re.compile(r"(?:(?P<file>.+):)?(?P<start>\d+)")
_ROWS = re.compile(r"(?:(?P<file>.+):)?(?P<start>\d+)\.\.(?P<end>\d+)")


@dataclass
class Selection:
    """The rows to show: the first ones, or those on some lines of a file.

    Attributes:
        text: option as it was given, for messages.
        count: number of first rows; 0 if lines are given.
        file: name of the file; empty for the first one.
        start: first line, from 1, as in `file:line` of messages.
        end: last line.
    """

    text: str = ""
    count: int = DEFAULT_ROWS
    file: str = ""
    start: int = 0
    end: int = 0
    _lines: dict[str, list[int]] = field(default_factory=dict)

    @property
    def single(self) -> bool:
        """Whether one row was asked for."""
        return not self.count and self.start == self.end

    def pick(self, rows: Iterator[tuple[RawRow, Outcome]]) -> Iterator[tuple[RawRow, Outcome]]:
        """Yield the selected rows; stop reading after the last.

        Raises:
            ConfigError: no row is on the lines.
        """
        found = 0
        for number, (raw, outcome) in enumerate(rows):
            if self.count and number == self.count:
                return
            if self.covers(raw.file, raw.line):
                found += 1
                yield raw, outcome
            elif found and not self.count and raw.line > self.end:
                return
            self._lines.setdefault(raw.file, []).append(raw.line)
        if not found:
            raise self.nothing_found()

    def covers(self, file: str, line: int) -> bool:
        """Whether a row is selected; of the first rows, each is."""
        if self.count:
            return True
        first = next(iter(self._lines), file)
        return file == (self.file or first) and self.start <= line <= self.end

    def nothing_found(self) -> ConfigError:
        """The error for lines on which no row begins."""
        name = self.file or next(iter(self._lines), "")
        lines = self._lines.get(name, [])
        key = "row" if self.single else "rows"
        if not lines:
            files = ", ".join(self._lines)
            return ConfigError(f"{key}: got {self.text}; need a row of {files}. Try {key}=1")
        near = min(lines, key=lambda line: abs(line - self.start))
        has = f"{name} has {pluralize(len(lines), 'row')}, on lines {min(lines)} to {max(lines)}"
        return ConfigError(f"{key}: got {self.text}, but {has}. Try row={near}")


def parse_selection(options: Mapping[str, str]) -> Selection:
    """Parse the options `row` and `rows`.

    Raises:
        ConfigError: one is no number or range, or both are given.
    """
    row, rows = options.get("row", ""), options.get("rows", "")
    if row and rows:
        raise ConfigError(f"row: given beside rows={rows}; need one of the two")
    if row:
        found = _ROW.fullmatch(row)
        if not found or not int(found["start"]):
            raise ConfigError(
                f"row: got {row}; need the number of a line, from 1, or FILE:LINE. Try row=1"
            )
        line = int(found["start"])
        return Selection(row, 0, found["file"] or "", line, line)
    if not rows:
        return Selection()
    if rows.isdecimal() and int(rows):
        return Selection(rows, int(rows))
    found = _ROWS.fullmatch(rows)
    if not found or not 0 < int(found["start"]) <= int(found["end"]):
        raise ConfigError(f"rows: got {rows}; need a number of rows, or lines A..B. Try rows=1..3")
    return Selection(rows, 0, found["file"] or "", int(found["start"]), int(found["end"]))

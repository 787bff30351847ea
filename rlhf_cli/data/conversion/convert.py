"""Convert rows to another layout; each is read back, and left out if it would be another row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlhf_cli.data.config import SourceConfig
from rlhf_cli.data.conversion.layouts import LAYOUTS, WrittenRow
from rlhf_cli.data.conversion.pairs import rank_to_pairs
from rlhf_cli.data.conversion.transcripts import transcript_to_messages
from rlhf_cli.data.records.adapters import LAYOUT_COLUMNS
from rlhf_cli.data.records.reader import Outcome, RecordWithSource, SourceReader
from rlhf_cli.data.records.types import (
    ANY_RECORDS,
    COLUMNS,
    KINDS,
    RankedRecord,
    Record,
    kind_name,
)
from rlhf_cli.data.report import MalformedRow, ReasonCount, RefusedRow, to_utf8
from rlhf_cli.data.sources.base import RawRow
from rlhf_cli.errors import DataError

_READ_COLUMNS = {*COLUMNS, *LAYOUT_COLUMNS, "comparisons"}
"""Columns whose meaning could change the row; others are kept as they are."""


@dataclass
class ConversionReport:
    """Counts of a conversion.

    Attributes:
        rows: rows read.
        written: kind of record -> rows written.
        left_out: reason -> rows that were not written.
        skipped_pairs: pairs of rankings with equal scores or responses.
        notes: what was left out of rows -> rows.
        dropped_columns: columns that were not kept -> rows.
    """

    rows: int = 0
    written: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, ReasonCount] = field(default_factory=dict)
    skipped_pairs: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    dropped_columns: Counter[str] = field(default_factory=Counter)

    def leave_out(self, location: str, reason: str) -> None:
        """Count a row that is not written."""
        self.left_out.setdefault(to_utf8(reason), ReasonCount(0, location)).rows += 1


@dataclass(frozen=True)
class Converter:
    """Converts rows.

    Attributes:
        to: layout to write, a key of `LAYOUTS`.
        pairs: pairs to make of rankings, a key of `pairs.CHOICES`; empty to keep rankings.
        messages: make messages of transcripts.
        report: counts the rows.
    """

    to: str
    pairs: str = ""
    messages: bool = False
    report: ConversionReport = field(default_factory=ConversionReport)

    def convert(self, rows: Iterable[tuple[RawRow, Outcome]]) -> Iterator[dict[str, Any]]:
        """Yield the columns of each converted row."""
        for raw, found in rows:
            self.report.rows += 1
            if isinstance(found, RecordWithSource):
                yield from self._convert(raw, found)
            else:
                self.report.leave_out(raw.location, str(found))

    def _convert(self, raw: RawRow, found: RecordWithSource) -> Iterator[dict[str, Any]]:
        try:
            records = self._change(found.record)
            written = [self._write(record, found.extra_columns) for record in records]
        except RefusedRow as error:
            self.report.leave_out(raw.location, str(error))
            return
        self.report.notes.update(found.notes)
        if not written:
            self.report.leave_out(raw.location, "no pair with different scores and responses")
        for row in written:
            self.report.written[kind_name(row.record)] += 1
            self.report.notes.update(row.notes)
            yield row.columns

    def _change(self, record: Record) -> list[Record]:
        """Make messages and pairs, where they are asked for."""
        if self.messages:
            record = transcript_to_messages(record)
        if not self.pairs or not isinstance(record, RankedRecord):
            return [record]
        pairs, skipped = rank_to_pairs(record, self.pairs)
        self.report.skipped_pairs += skipped
        return list(pairs)

    def _write(self, record: Record, others: Mapping[str, Any]) -> WrittenRow:
        """Write a record with the other columns of its row.

        Raises:
            RefusedRow: the layout does not have it, or it would be read as another record.
        """
        written = LAYOUTS[self.to](record)
        for name, value in others.items():
            if name in _READ_COLUMNS or name in written.columns:
                self.report.dropped_columns[name] += 1
            else:
                written.columns[name] = value
        if read_back(written) != written.record:
            raise RefusedRow(f"the row would be read as another record in to={self.to}")
        return written


def read_back(written: WrittenRow) -> Record | None:
    """Return the record that a written row is read as; None if it cannot be read."""
    kinds = [kind for record in ANY_RECORDS for kind in KINDS if kind.record is record]
    reader = SourceReader(SourceConfig(format=written.format), "convert", kinds)
    try:
        return reader.read(RawRow("", 1, written.columns)).record
    except (MalformedRow, RefusedRow, DataError):
        return None

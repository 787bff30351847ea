"""From raw rows to records; what is malformed or refused is counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_cli.data.config import DataConfig, Source
from rlhf_cli.data.reading.mixture import sources_of
from rlhf_cli.data.reading.raw import RawRow
from rlhf_cli.data.records.kind_reader import KindReader, kinds_of
from rlhf_cli.data.records.record import Record
from rlhf_cli.data.records.row_errors import Malformed, Refused
from rlhf_cli.data.report import DataReport


@dataclass(frozen=True, slots=True)
class Located:
    """A record and where it stands.

    Attributes:
        record: what was read.
        file: its name.
        line: in the file, from 1.
        copy: how often the row was drawn before.
        rest: the row's columns that the record does not have.
    """

    record: Record
    file: str
    line: int
    copy: int = 0
    rest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """`file:line`, for messages."""
        return f"{self.file}:{self.line}"


class RecordReader:
    """Reads all rows of a data set; those of one source are of one kind.

    Args:
        cfg: `max_bad_rows`.
        stage: named in errors.
        allowed: the record classes that the stage takes, the preferred first.
        report: counts the rows.
        sources: as in `RawRow.source`; without them, those of `data.path`.

    Raises:
        ConfigError: `data.columns` names a column that is none of ours.
    """

    def __init__(
        self,
        cfg: DataConfig,
        stage: str,
        allowed: tuple[type, ...],
        report: DataReport,
        sources: Sequence[Source] = (),
    ) -> None:
        self.max_bad_rows, self.report = cfg.max_bad_rows, report
        kinds = kinds_of(allowed)
        self.readers = [
            KindReader(source, stage, kinds) for source in sources or sources_of(cfg, cfg.path)
        ]

    def read(self, rows: Iterable[RawRow]) -> Iterator[Located]:
        """The good records.

        Raises:
            DataError: the stage does not take such rows, or too many are malformed. The latter is
                known, with their number, once all rows are read.
        """
        for row in self._unfolded(rows):
            self.report.rows += row.copy == 0
            try:
                record, rest, notes = self.readers[row.source].read(row)
            except Malformed as error:
                if row.copy == 0:
                    self.report.add_malformed(row.where, str(error))
            except Refused as error:
                if row.copy == 0:
                    self.report.add_refused(row.where, str(error))
            else:
                self.report.add_ignored(rest)
                for note in notes if row.copy == 0 else ():
                    self.report.add_note(row.where, note)
                # else the rest is only counted: nothing will be trained
                if self.report.malformed <= self.max_bad_rows:
                    yield Located(record, row.file, row.line, row.copy, rest)
        self._end()

    def _unfolded(self, rows: Iterable[RawRow]) -> Iterator[RawRow]:
        for row in rows:
            yield from self.readers[row.source].unfold(row)

    def _end(self) -> None:
        kinds = [reader.kind.name for reader in self.readers if reader.kind]
        self.report.kind = ", ".join(dict.fromkeys(kinds))
        self.report.require_few_malformed(self.max_bad_rows)

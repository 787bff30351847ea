"""From raw rows to records: which kind they are, and what is malformed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.records import COLUMNS, KINDS, Kind, Record, fitting
from rlhf_cli.data.report import DataReport
from rlhf_cli.data.row_errors import Malformed, Refused
from rlhf_cli.data.sources import RawRow
from rlhf_cli.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class Located:
    """A record and where it stands."""

    record: Record
    file: str
    line: int

    @property
    def where(self) -> str:
        """`file:line`, for messages."""
        return f"{self.file}:{self.line}"


class RecordReader:
    """Reads all rows of a data set as one kind of record, which the first good row decides.

    Args:
        cfg: `format`, `columns` and `max_bad_rows`.
        stage: named in errors.
        allowed: the record classes that the stage takes, the preferred first.
        report: counts the rows.
    """

    def __init__(
        self, cfg: DataConfig, stage: str, allowed: tuple[type, ...], report: DataReport
    ) -> None:
        self.cfg, self.stage, self.report = cfg, stage, report
        self.allowed = [kind for record in allowed for kind in KINDS if kind.record is record]
        self.kind: Kind | None = None
        _require_known_columns(cfg.columns)

    def read(self, rows: Iterable[RawRow]) -> Iterator[Located]:
        """The good records.

        Raises:
            DataError: the stage does not take such rows, or too many are malformed. The latter is
                known, with their number, once all rows are read.
        """
        for row in rows:
            self.report.rows += 1
            where = f"{row.file}:{row.line}"
            try:
                record = self._record(row, where)
            except Malformed as error:
                self.report.add_malformed(where, str(error))
            except Refused as error:
                self.report.add_refused(where, str(error))
            else:
                # else the rest is only counted: nothing will be trained
                if self.report.malformed <= self.cfg.max_bad_rows:
                    yield Located(record, row.file, row.line)
        self.report.require_few_malformed(self.cfg.max_bad_rows)

    def _record(self, row: RawRow, where: str) -> Record:
        columns = row.columns()
        named = self._rename(columns)
        if self.kind is None:
            self.kind = self._choose(list(named), row, where)
            self.report.kind = self.kind.name
        read = {self.cfg.columns.get(name, name) for name in self.kind.columns}
        self.report.add_ignored(name for name in columns if name not in read)
        return self.kind.parse(named)

    def _rename(self, columns: dict[str, Any]) -> dict[str, Any]:
        """The columns under our names."""
        theirs = self.cfg.columns
        missing = [name for name in theirs.values() if name not in columns]
        if missing:
            found = ", ".join(columns) or "none"
            raise Malformed(f"no column {', '.join(missing)} (data.columns); found {found}")
        rest = {name: value for name, value in columns.items() if name not in theirs}
        return {**rest, **{ours: columns[name] for ours, name in theirs.items()}}

    def _choose(self, names: list[str], row: RawRow, where: str) -> Kind:
        if self.cfg.format != "auto":
            found = [kind for kind in KINDS if kind.name == self.cfg.format]
        else:
            found = fitting(set(names))
        taken = [kind for kind in self.allowed if kind in found]
        if taken:
            return taken[0]
        if not found:
            raise DataError(
                f"{where}: no known columns in {names}; {self._takes()}. Name them, as in "
                "data.columns={prompt: question}. See docs/data.md"
            )
        if self.cfg.format != "auto":
            raise DataError(f"data.format: got {self.cfg.format}; {self._takes()}")
        has = _described(found[0], names)
        near = [kind.name for kind in self.allowed if set(names) >= set(kind.required)]
        advice = f" Try data.format={near[0]} to read the rows as such." if near else ""
        raise DataError(f"{row.file} has {has}; {self._takes()}.{advice} See docs/data.md")

    def _takes(self) -> str:
        kinds = " or ".join(_described(kind, kind.required) for kind in self.allowed)
        return f"{self.stage} takes {kinds}"


def _described(kind: Kind, names: Iterable[str]) -> str:
    return f"{kind.name} rows ({', '.join(name for name in names if name in kind.columns)})"


def _require_known_columns(columns: dict[str, str]) -> None:
    for name in columns:
        if name not in COLUMNS:
            raise ConfigError(
                f"data.columns.{name}: no such column; need one of {', '.join(COLUMNS)}, as in "
                "data.columns={prompt: question}"
            )

"""From raw rows to records; what is malformed or refused is counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rlhf_cli.data.config import DataConfig, Source
from rlhf_cli.data.records.adapters import adapt
from rlhf_cli.data.records.columns import Naming
from rlhf_cli.data.records.responses import EARLY, has_several_turns
from rlhf_cli.data.records.types import (
    COLUMNS,
    KINDS,
    Kind,
    PreferenceRecord,
    Record,
    fitting,
    is_chat,
)
from rlhf_cli.data.report import DataReport, Malformed, Refused
from rlhf_cli.data.sources.base import RawRow
from rlhf_cli.data.sources.message_trees import is_tree, unfold
from rlhf_cli.data.sources.mixture import sources_of
from rlhf_cli.errors import DataError


class Read(NamedTuple):
    """What was read of a row.

    Attributes:
        record: of the kind that the source has.
        rest: the row's columns that the record was not made of.
        notes: what was done to the row that a user wants to know.
    """

    record: Record
    rest: dict[str, Any]
    notes: tuple[str, ...] = ()


class KindReader:
    """Reads rows as one kind of record, which the first row that can be read decides.

    Args:
        source: `format` and `columns`.
        stage: named in errors.
        allowed: the kinds that the stage takes, the preferred first.
    """

    def __init__(self, source: Source, stage: str, allowed: Sequence[Kind]) -> None:
        self.format, self.stage, self.allowed = source.format, stage, allowed
        self.naming = Naming(source.columns)
        self.kind: Kind | None = None

    def unfold(self, row: RawRow) -> Iterable[RawRow]:
        """The rows that a row stands for: those of a tree of messages, else the row itself."""
        if is_tree(row.found):
            allowed = [kind.name for kind in self.allowed]
            return unfold(row, allowed if self.format == "auto" else [self.format])
        return (row,)

    def read(self, row: RawRow) -> Read:
        """The record of a row.

        Raises:
            DataError: the stage does not take such rows.
            Malformed: the row cannot be read.
            Refused: there is nothing to learn from it.
        """
        columns = row.columns()
        named = self.naming.rename(columns)
        chat = self.format == "chat" or (self.kind is not None and self.kind.name == "chat")
        adapted = adapt(named, as_chat=chat, untyped=row.untyped)
        nulls = [name for name in named if name not in adapted.columns]
        if self.kind is None:
            self.kind = self._choose(adapted.columns, nulls, row)
        try:
            record = self.kind.parse({**dict.fromkeys(nulls), **adapted.columns})
        except Malformed as error:
            raise self._advised(error, adapted.columns) from None
        notes = adapted.notes + _notes(record, adapted.columns)
        return Read(record, self._rest(columns, adapted.sources, record), notes)

    def _rest(
        self, columns: Mapping[str, Any], sources: Mapping[str, frozenset[str]], record: Record
    ) -> dict[str, Any]:
        """The row's columns that its record was not made of; null ones are none."""
        assert self.kind is not None
        read: set[str] = set()
        for ours in (*self.kind.columns, *(["tools"] if is_chat(record) else [])):
            for name in sources.get(ours, {ours}):
                read |= self.naming.reads.get(name, {name})
        return {
            name: value for name, value in columns.items() if name not in read and value is not None
        }

    def _advised(self, error: Malformed, columns: Mapping[str, Any]) -> Malformed:
        """The error, with the kind that this row can be read as, where it is another one's."""
        assert self.kind is not None
        if set(self.kind.required) <= set(columns):
            return error
        other = [kind for kind in self.allowed if set(kind.required) <= set(columns)]
        advice = f" This row fits data.format={other[0].name}" if other else ""
        return Malformed(f"{error}{advice}") if advice else error

    def _choose(self, columns: Mapping[str, Any], nulls: Sequence[str], row: RawRow) -> Kind:
        names = list(columns)
        if self.format != "auto":
            found = [kind for kind in KINDS if kind.name == self.format]
        else:
            found = fitting(set(names))
        taken = [kind for kind in self.allowed if kind in found]
        if taken:
            return taken[0]
        known = [name for name in nulls if name in COLUMNS]
        if known and self.format == "auto":  # another row may have what is null in this one
            raise Malformed(f"null: {', '.join(known)}; found {', '.join(names)}; {self._takes()}")
        if not found:
            raise DataError(
                f"{row.where}: no known columns in {names}; {self._takes()}. Name them, as in "
                "data.columns={prompt: question}. See rlhf docs data"
            )
        if self.format != "auto":
            raise DataError(f"data.format: got {self.format}; {self._takes()}")
        has = _described(found[0], names)
        near = [kind.name for kind in self.allowed if set(names) >= set(kind.required)]
        advice = f" Try data.format={near[0]} to read the rows as such." if near else ""
        raise DataError(f"{row.file} has {has}; {self._takes()}.{advice} See rlhf docs data")

    def _takes(self) -> str:
        kinds = " or ".join(_described(kind, kind.required) for kind in self.allowed)
        return f"{self.stage} takes {kinds}"


def _notes(record: Record, columns: Mapping[str, Any]) -> tuple[str, ...]:
    """What a user wants to know of how a record was read."""
    if not isinstance(record, PreferenceRecord) or "prompt" in columns:
        return ()
    return (EARLY,) if any(map(has_several_turns, (record.chosen, record.rejected))) else ()


def _described(kind: Kind, names: Iterable[str]) -> str:
    return f"{kind.name} rows ({', '.join(name for name in names if name in kind.columns)})"


def kinds_of(records: Sequence[type[Any]]) -> list[Kind]:
    """The kinds of some record classes, in the same order."""
    return [kind for record in records for kind in KINDS if kind.record is record]


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

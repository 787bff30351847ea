"""Read raw rows as records, and count those that are malformed or refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rlhf_cli.data.config import DataConfig, SourceConfig
from rlhf_cli.data.records.adapters import adapt_row
from rlhf_cli.data.records.columns import ColumnMapping
from rlhf_cli.data.records.responses import MULTI_TURN_NOTE, has_several_turns
from rlhf_cli.data.records.types import (
    COLUMNS,
    KINDS,
    PreferenceRecord,
    Record,
    RecordKind,
    is_chat,
    match_kinds,
)
from rlhf_cli.data.report import DataReport, MalformedRow, RefusedRow
from rlhf_cli.data.sources.base import RawRow
from rlhf_cli.data.sources.message_trees import expand_tree, is_tree
from rlhf_cli.data.sources.mixture import list_sources
from rlhf_cli.errors import DataError


@dataclass(frozen=True, slots=True)
class RecordWithSource:
    """A record and the location of its row.

    Attributes:
        record: record of the row.
        file: file name.
        line: line number from 1.
        repeat: how often the row was sampled before.
        extra_columns: columns of the row that the record does not use.
        notes: changes to the row.
    """

    record: Record
    file: str
    line: int
    repeat: int = 0
    extra_columns: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def location(self) -> str:
        """`file:line`, for messages."""
        return f"{self.file}:{self.line}"


Outcome = RecordWithSource | MalformedRow | RefusedRow
"""What became of a row."""


class RecordReader:
    """Reads the rows of a data set; those of one source have one record kind.

    Args:
        cfg: data configuration; `max_bad_rows` malformed rows are tolerated.
        stage: name of the stage, for error messages.
        allowed: record classes that the stage takes, the preferred first.
        report: counts the rows.
        sources: data sources in the order of `RawRow.source`; those of `data.path` by default.

    Raises:
        ConfigError: `data.columns` names a column that is not one of ours.
    """

    def __init__(
        self,
        cfg: DataConfig,
        stage: str,
        allowed: tuple[type, ...],
        report: DataReport,
        sources: Sequence[SourceConfig] = (),
    ) -> None:
        self.max_bad_rows, self.report = cfg.max_bad_rows, report
        sources = sources or list_sources(cfg, cfg.path)
        kinds = [kind for record in allowed for kind in KINDS if kind.record is record]
        self.readers = [SourceReader(source, stage, kinds) for source in sources]

    def read(self, rows: Iterable[RawRow]) -> Iterator[RecordWithSource]:
        """Yield the records of the good rows.

        Raises:
            DataError: the stage does not take such rows, or too many are malformed. The latter is
                raised after all rows were read, to report their number.
        """
        for _, found in self.outcomes(rows):
            # with too many malformed rows the others are only counted
            if isinstance(found, RecordWithSource) and self.report.malformed <= self.max_bad_rows:
                yield found
        self.report.require_few_malformed(self.max_bad_rows)

    def outcomes(self, rows: Iterable[RawRow]) -> Iterator[tuple[RawRow, Outcome]]:
        """Yield every row, trees expanded, with its record or with what is wrong with it.

        Raises:
            DataError: the stage does not take such rows.
        """
        for row in self._expand_trees(rows):
            self.report.rows += row.repeat == 0
            yield row, self._read(row)
        kind_names = [reader.kind.name for reader in self.readers if reader.kind]
        self.report.kind = ", ".join(dict.fromkeys(kind_names))

    def _read(self, row: RawRow) -> Outcome:
        """Read and count one row."""
        counted = row.repeat == 0
        try:
            record, extra_columns, notes = self.readers[row.source].read(row)
        except MalformedRow as error:
            if counted:
                self.report.add_malformed(row.location, str(error))
            return error
        except RefusedRow as error:
            if counted:
                self.report.add_refused(row.location, str(error))
            return error
        self.report.add_ignored(extra_columns)
        for note in notes if counted else ():
            self.report.add_note(row.location, note)
        return RecordWithSource(record, row.file, row.line, row.repeat, extra_columns, notes)

    def _expand_trees(self, rows: Iterable[RawRow]) -> Iterator[RawRow]:
        for row in rows:
            yield from self.readers[row.source].expand(row)


class ReadRecord(NamedTuple):
    """Result of reading a row.

    Attributes:
        record: record of the source's kind.
        extra_columns: columns of the row that the record does not use.
        notes: changes to the row, for the report.
    """

    record: Record
    extra_columns: dict[str, Any]
    notes: tuple[str, ...] = ()


class SourceReader:
    """Reads the rows of one source as one record kind, which its first readable row decides.

    Args:
        source: `format` and `columns` of the source.
        stage: name of the stage, for error messages.
        allowed: kinds that the stage takes, the preferred first.
    """

    def __init__(self, source: SourceConfig, stage: str, allowed: Sequence[RecordKind]) -> None:
        self.format, self.stage, self.allowed = source.format, stage, allowed
        self.mapping = ColumnMapping(source.columns)
        self.kind: RecordKind | None = None

    def expand(self, row: RawRow) -> Iterable[RawRow]:
        """Expand a row that is a message tree into several rows."""
        if is_tree(row.parsed):
            allowed = [kind.name for kind in self.allowed]
            return expand_tree(row, allowed if self.format == "auto" else [self.format])
        return (row,)

    def read(self, row: RawRow) -> ReadRecord:
        """Read the record of a row.

        Raises:
            DataError: the stage does not take such rows.
            MalformedRow: the row cannot be read.
            RefusedRow: the row cannot be trained on.
        """
        columns = row.columns()
        renamed = self.mapping.rename(columns)
        chat = self.format == "chat" or (self.kind is not None and self.kind.name == "chat")
        adapted = adapt_row(renamed, as_chat=chat, untyped=row.untyped)
        nulls = [name for name in renamed if name not in adapted.columns]
        if self.kind is None:
            self.kind = self._choose_kind(adapted.columns, nulls, row)
        try:
            record = self.kind.parse({**dict.fromkeys(nulls), **adapted.columns})
        except MalformedRow as error:
            raise self._add_advice(error, adapted.columns) from None
        notes = adapted.notes + _multi_turn_notes(record, adapted.columns)
        return ReadRecord(record, self._extra_columns(columns, adapted.inputs, record), notes)

    def _extra_columns(
        self, columns: Mapping[str, Any], inputs: Mapping[str, frozenset[str]], record: Record
    ) -> dict[str, Any]:
        """Return the row's columns, without nulls, that its record was not made of."""
        assert self.kind is not None
        used: set[str] = set()
        for ours in (*self.kind.columns, *(["tools"] if is_chat(record) else [])):
            for name in inputs.get(ours, {ours}):
                used |= self.mapping.inputs.get(name, {name})
        return {
            name: value for name, value in columns.items() if name not in used and value is not None
        }

    def _add_advice(self, error: MalformedRow, columns: Mapping[str, Any]) -> MalformedRow:
        """Add the kind that this row fits to its error, if it is another than the source's."""
        assert self.kind is not None
        if set(self.kind.required) <= set(columns):
            return error
        others = [kind for kind in self.allowed if set(kind.required) <= set(columns)]
        if not others:
            return error
        return MalformedRow(f"{error} This row fits data.format={others[0].name}")

    def _choose_kind(
        self, columns: Mapping[str, Any], nulls: Sequence[str], row: RawRow
    ) -> RecordKind:
        names = list(columns)
        auto = self.format == "auto"
        found = match_kinds(set(names)) if auto else [k for k in KINDS if k.name == self.format]
        accepted = [kind for kind in self.allowed if kind in found]
        if accepted:
            return accepted[0]
        known = [name for name in nulls if name in COLUMNS]
        if known and auto:  # another row can have values in these columns
            raise MalformedRow(
                f"null: {', '.join(known)}; found {', '.join(names)}; {self._accepted_kinds()}"
            )
        if not found:
            raise DataError(
                f"{row.location}: no known columns in {names}; {self._accepted_kinds()}. Name "
                "them, as in data.columns={prompt: question}. See rlhf docs data"
            )
        if not auto:
            raise DataError(f"data.format: got {self.format}; {self._accepted_kinds()}")
        has = _describe_kind(found[0], names)
        near = [kind.name for kind in self.allowed if set(names) >= set(kind.required)]
        advice = f" Try data.format={near[0]} to read the rows as such." if near else ""
        raise DataError(
            f"{row.file} has {has}; {self._accepted_kinds()}.{advice} See rlhf docs data"
        )

    def _accepted_kinds(self) -> str:
        kinds = " or ".join(_describe_kind(kind, kind.required) for kind in self.allowed)
        return f"{self.stage} takes {kinds}"


def _multi_turn_notes(record: Record, columns: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a note if the responses of two transcripts have several turns."""
    if not isinstance(record, PreferenceRecord) or "prompt" in columns:
        return ()
    several = any(map(has_several_turns, (record.chosen, record.rejected)))
    return (MULTI_TURN_NOTE,) if several else ()


def _describe_kind(kind: RecordKind, names: Iterable[str]) -> str:
    return f"{kind.name} rows ({', '.join(name for name in names if name in kind.columns)})"

"""One source's rows as records: under which names, of which kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlhf_cli.data.config import Source
from rlhf_cli.data.reading.raw import RawRow
from rlhf_cli.data.records.naming import Naming
from rlhf_cli.data.records.record import KINDS, Kind, Record, fitting, is_chat
from rlhf_cli.data.records.shapes import READS, adapt, from_text
from rlhf_cli.errors import DataError


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

    def read(self, row: RawRow) -> tuple[Record, dict[str, Any]]:
        """The record of a row, and the columns that were not read for it.

        Raises:
            DataError: the stage does not take such rows.
            Malformed: the row cannot be read.
            Refused: there is nothing to learn from it.
        """
        columns = row.columns()
        named = self.naming.rename(columns)
        if row.untyped:
            named = from_text(named)
        named = adapt(named, as_chat=self.format == "chat")
        if self.kind is None:
            self.kind = self._choose(list(named), row)
        record = self.kind.parse(named)
        return record, self._ignored(columns, record)

    def _ignored(self, columns: Mapping[str, Any], record: Record) -> dict[str, Any]:
        assert self.kind is not None
        renamed, read = self.naming.reads, set()
        for name in self.kind.columns:
            read |= renamed.get(name) or {name} | READS.get(name, set())
        if is_chat(record):
            read.add("tools")
        return {name: value for name, value in columns.items() if name not in read}

    def _choose(self, names: list[str], row: RawRow) -> Kind:
        if self.format != "auto":
            found = [kind for kind in KINDS if kind.name == self.format]
        else:
            found = fitting(set(names))
        taken = [kind for kind in self.allowed if kind in found]
        if taken:
            return taken[0]
        if not found:
            raise DataError(
                f"{row.where}: no known columns in {names}; {self._takes()}. Name them, as in "
                "data.columns={prompt: question}. See docs/data.md"
            )
        if self.format != "auto":
            raise DataError(f"data.format: got {self.format}; {self._takes()}")
        has = _described(found[0], names)
        near = [kind.name for kind in self.allowed if set(names) >= set(kind.required)]
        advice = f" Try data.format={near[0]} to read the rows as such." if near else ""
        raise DataError(f"{row.file} has {has}; {self._takes()}.{advice} See docs/data.md")

    def _takes(self) -> str:
        kinds = " or ".join(_described(kind, kind.required) for kind in self.allowed)
        return f"{self.stage} takes {kinds}"


def _described(kind: Kind, names: Iterable[str]) -> str:
    return f"{kind.name} rows ({', '.join(name for name in names if name in kind.columns)})"


def kinds_of(records: Sequence[type[Any]]) -> list[Kind]:
    """The kinds of some record classes, in the same order."""
    return [kind for record in records for kind in KINDS if kind.record is record]

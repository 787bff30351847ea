"""The rows that a dry run reads: all of them, or of large data the first ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf_cli.data.config import DataConfig, SourceConfig
from rlhf_cli.data.sources.base import DataSource, DefaultSplit, RawRow
from rlhf_cli.data.sources.mixture import Mixture, open_sources
from rlhf_cli.errors import DataError

SAMPLE_CHARACTERS = 300_000
"""Text of the rows that are tokenized, over all sources: half a second on one core."""

WHOLE_BYTES = 32_000_000
"""Largest `.txt` or `.json` file that is read: such files have no first rows."""


@dataclass(frozen=True)
class Sample:
    """The first rows of each source of `data.path` or `data.eval`.

    Attributes:
        mixture: the rows that were read.
        read: number of rows that were read.
        rows: number of rows of all sources; an estimate unless all were read.
        share: rows that an epoch samples, for each row of the mixture.
        characters: of the texts of these rows.
        complete: whether all rows were read.
        size: bytes of all sources, or rows of those without files.
    """

    mixture: Mixture
    read: int
    rows: int
    share: float
    characters: int
    complete: bool
    size: int


def sample_rows(
    cfg: DataConfig, given: str | Sequence[str | SourceConfig], stage: str, split: DefaultSplit
) -> Sample:
    """Read the first rows of each source.

    Args:
        cfg: data configuration.
        given: the sources, as in `data.path`.
        stage: selects the shipped rows.
        split: `train` for `data.path`, `test` for `data.eval`.

    Raises:
        DataError: a source does not exist, cannot be read, or has no first rows.
    """
    sources = open_sources(cfg, given, stage, split)
    room = SAMPLE_CHARACTERS // len(sources)
    heads = [_read_head(source, room) for source in sources]
    weights = [source.settings.weight for source in sources]
    drawn = sum(head.drawn * weight for head, weight in zip(heads, weights, strict=True))
    wanted = sum(head.total * weight for head, weight in zip(heads, weights, strict=True))
    return Sample(
        Mixture([head.as_source for head in heads], [None] * len(heads)),
        read=sum(len(head.rows) for head in heads),
        rows=round(sum(head.total for head in heads)),
        share=wanted / drawn if drawn else 1.0,
        characters=sum(head.characters for head in heads),
        complete=all(head.complete for head in heads),
        size=sum(source.size for source in sources),
    )


@dataclass(frozen=True)
class _Head:
    """The first rows of a source, and the number of all."""

    source: DataSource
    rows: Sequence[RawRow]
    drawn: float
    """Rows that were read, a cut one in part."""

    total: float
    characters: int
    complete: bool

    @property
    def as_source(self) -> DataSource:
        """A source of these rows, which are not hashed."""
        return replace(self.source, rows=lambda: iter(self.rows), compute_fingerprint=str)


def _read_head(source: DataSource, room: int) -> _Head:
    """Read rows until their texts have `room` characters; a longer document is cut."""
    _require_first_rows(source)
    rows: list[RawRow] = []
    characters = size = 0
    drawn = 0.0
    for row in source.rows():
        if characters >= room:
            total = len(rows) * source.size / max(size, 1)
            return _Head(source, rows, drawn, total, characters, complete=False)
        size += row.size
        kept, found = _cut_document(row, room)
        rows.append(kept)
        characters += min(found, room)
        drawn += min(1.0, room / found) if kept is not row else 1.0
    complete = drawn == len(rows)
    return _Head(source, rows, drawn, float(len(rows)), characters, complete=complete)


def _cut_document(row: RawRow, room: int) -> tuple[RawRow, int]:
    """The row, its text cut to `room` characters if it is a document; and the characters it has."""
    found, parsed = _count_characters(row.parsed), row.parsed
    if found <= room or not isinstance(parsed, dict) or parsed.keys() != {"text"}:
        return row, found
    return replace(row, parsed={"text": str(parsed["text"])[:room]}), found


def _require_first_rows(source: DataSource) -> None:
    whole = [name for name in source.names if name.lower().endswith((".txt", ".json"))]
    if whole and source.size > WHOLE_BYTES:
        raise DataError(
            f"{whole[0]}: a dry run reads such files whole, and this has "
            f"{source.size / 1e6:,.0f} MB; need at most {WHOLE_BYTES / 1e6:.0f} MB, or JSON lines "
            "(.jsonl), whose first rows it takes"
        )


def _count_characters(value: Any) -> int:
    """Characters of all texts in a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_count_characters, value.values()))
    return sum(map(_count_characters, value)) if isinstance(value, list) else 0

"""Which rows of which sources are drawn, how often, and which are held out for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.data.config import DataConfig, Source
from rlhf_cli.data.reading.raw import RawRow, RowSource
from rlhf_cli.errors import DataError

HELD_OUT_SEED = 0
"""Not the run's: runs with other seeds, and later stages, hold out the same rows."""

Copies = NDArray[np.int64]
"""[rows], how often each row of a source is drawn in an epoch."""


def sources_of(cfg: DataConfig, given: str | Sequence[str | Source]) -> list[Source]:
    """The sources of `data.path`, each with `data`'s own settings where it has none."""
    listed = [given] if isinstance(given, str) else given
    sources = [Source(path=item) if isinstance(item, str) else item for item in listed]
    names = ("name", "revision", "split", "data_dir", "columns")
    return [
        replace(
            source,
            format=cfg.format if source.format == "auto" else source.format,
            **{name: getattr(source, name) or getattr(cfg, name) for name in names},
        )
        for source in sources
    ]


def held_out_sources(cfg: DataConfig, given: str | Sequence[str | Source]) -> list[Source]:
    """The sources of `data.eval`: of `data`'s settings, those that say how rows are read."""
    return sources_of(replace(cfg, split="", data_dir=""), given)


@dataclass(frozen=True)
class Mixture:
    """Rows of several sources in an epoch.

    Attributes:
        sources: at least one.
        copies: of each source, or none where all rows are drawn `weight` times.
        held_out: number of rows that are kept for evaluation.
    """

    sources: list[RowSource]
    copies: list[Copies | None]
    held_out: int = 0
    facts: list[dict[str, Any]] = field(default_factory=list)

    def rows(self) -> Iterator[RawRow]:
        """The drawn rows of each source in turn; a source of weight 2 is read twice."""
        for number, (source, copies) in enumerate(zip(self.sources, self.copies, strict=True)):
            most = int(source.settings.weight) if copies is None else int(copies.max(initial=0))
            for copy in range(most):
                for index, row in enumerate(source.rows()):
                    if copies is None or copies[index] > copy:
                        yield replace(row, source=number, copy=copy) if number or copy else row

    @property
    def content(self) -> str:
        """Changes with the rows, and with how they are read."""
        whole = sha256()
        for source, copies in zip(self.sources, self.copies, strict=True):
            settings = source.settings
            whole.update(f"{source.content}\n{settings.format} {settings.columns}\n".encode())
            whole.update(str(settings.weight).encode() if copies is None else copies.tobytes())
        return whole.hexdigest()


def training_rows(sources: list[RowSource], held_out: int | float, seed: int) -> Mixture:
    """What is drawn for training.

    Args:
        sources: of `data.path`.
        held_out: rows to leave out (`int`), or their share (`float`); 0 for none.
        seed: of the draw of a source whose weight is no whole number.

    Raises:
        DataError: nothing is left.
    """
    whole = all(source.settings.weight == int(source.settings.weight) for source in sources)
    if not held_out and whole:
        return Mixture(sources, [None] * len(sources))
    masks = _held_out(sources, held_out)
    copies: list[Copies | None] = []
    facts = []
    for number, (source, mask) in enumerate(zip(sources, masks, strict=True)):
        drawn = _draw(~mask, source.settings.weight, np.random.default_rng((seed, number)))
        copies.append(drawn)
        facts.append(_facts(source, mask, drawn))
    if not any(fact["drawn"] for fact in facts):
        raise DataError("data.path: no row is drawn; the weights are too small for so few rows")
    return Mixture(sources, copies, sum(fact["held_out"] for fact in facts), facts)


def held_out_rows(sources: list[RowSource], held_out: int | float) -> Mixture:
    """What `training_rows` leaves out, each row once.

    Raises:
        DataError: nothing is left to train on.
    """
    masks = _held_out(sources, held_out)
    return Mixture(sources, [mask.astype(np.int64) for mask in masks])


def _facts(source: RowSource, held_out: NDArray[np.bool_], drawn: Copies) -> dict[str, Any]:
    return {
        "path": source.settings.path,
        "weight": source.settings.weight,
        "rows": len(held_out),
        "held_out": int(held_out.sum()),
        "drawn": int(drawn.sum()),
    }


def _held_out(sources: list[RowSource], held_out: int | float) -> list[NDArray[np.bool_]]:
    """For each source, True where a row is held out; drawn over the rows of all of them."""
    counts = [sum(1 for _ in source.rows()) for source in sources]
    rows = sum(counts)
    wanted = held_out if isinstance(held_out, int) else max(1, round(held_out * rows))
    if held_out and wanted >= rows:
        raise DataError(
            f"data.eval: holding out {wanted} of {rows} rows leaves none to train on; "
            "name a file of held-out rows, or data.eval=none"
        )
    mask = np.zeros(rows, bool)
    mask[np.random.default_rng(HELD_OUT_SEED).permutation(rows)[:wanted]] = True
    return np.split(mask, np.cumsum(counts)[:-1])


def _draw(there: NDArray[np.bool_], weight: float, rng: np.random.Generator) -> Copies:
    """Every row `floor(weight)` times, and the rest of the weight as a draw without repetition."""
    copies = there * int(weight)
    rows = np.flatnonzero(there)
    extra = round((weight - int(weight)) * len(rows))
    copies[rng.permutation(rows)[:extra]] += 1
    return copies.astype(np.int64)

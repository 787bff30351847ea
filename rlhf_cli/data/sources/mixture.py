"""Open the sources of `data.path` and `data.eval`, and choose which of their rows are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.config.paths import is_data_id
from rlhf_cli.data.config import DataConfig, Source
from rlhf_cli.data.sources.base import RawRow, RowSource, Side, Split, parse_split
from rlhf_cli.data.sources.files import data_files, fingerprint, read_rows, resolve
from rlhf_cli.data.sources.hf_datasets import is_hub_folder, open_hub, open_saved
from rlhf_cli.data.sources.message_trees import gather_trees
from rlhf_cli.errors import DataError
from rlhf_cli.resources import SHIPPED
from rlhf_cli.runs.data_files import is_saved


def open_training(cfg: DataConfig, stage: str, seed: int) -> Mixture:
    """The rows that are drawn for training.

    Args:
        cfg: `path` names them; those that `eval` counts are left out.
        stage: names the shipped rows.
        seed: of the draw from sources with a weight that is no whole number.

    Raises:
        DataError: they are not there, or none is left.
    """
    held_out = cfg.eval if isinstance(cfg.eval, int | float) else 0
    return training_rows(open_sources(cfg, cfg.path, stage, "train"), held_out, seed)


def open_held_out(cfg: DataConfig, stage: str) -> Mixture | None:
    """The rows that `data.eval` names or counts, or none; as `open_training`."""
    given = cfg.eval
    if isinstance(given, int | float):
        return held_out_rows(open_sources(cfg, cfg.path, stage, "train"), given)
    if given == "auto":
        given = SHIPPED if cfg.path == SHIPPED else "none"
    if given in ("", "none"):
        return None
    return training_rows(open_sources(cfg, given, stage, "test"), 0, seed=0)


def open_source(settings: Source, stage: str, side: Side) -> RowSource:
    """Find the files or the hub data set of a source; messages of trees are put together.

    Raises:
        DataError: they are not there, or cannot be read.
        ConfigError: the split is none.
    """
    source = _open(settings, stage, side)
    # to pretrain, each message is a document as it stands
    documents = settings.format == "text" or (settings.format == "auto" and stage == "pretrain")
    return source if documents else replace(source, rows=lambda: gather_trees(source.rows()))


def _open(settings: Source, stage: str, side: Side) -> RowSource:
    split = parse_split(settings.split)
    found = Path(settings.path).expanduser()
    there = settings.path in ("", SHIPPED) or found.exists()
    if not there and is_data_id(settings.path):
        return open_hub(settings, split, side)
    if settings.path != SHIPPED and not is_saved(found) and is_hub_folder(found, settings):
        return open_hub(settings, split, side)
    path = resolve(settings.path, stage, side)
    if settings.data_dir:
        path = resolve(str(path / settings.data_dir), stage, side)
    if is_saved(path):
        return open_saved(settings, path, split, side)
    return _open_local(settings, path, split, side)


def _open_local(settings: Source, path: Path, split: Split, side: Side) -> RowSource:
    if split.name not in ("", "train") and not path.is_dir():
        raise DataError(
            f"data.split: {path.name} is one file and has no split {split.name}; "
            "slice its rows, as in data.split=[:100], or leave it out"
        )
    files = data_files(path, split.name or side)

    def rows() -> Iterator[RawRow]:
        if not split.sliced:
            return read_rows(files.read)
        start, end = split.bounds(sum(1 for _ in read_rows(files.read)))
        return islice(read_rows(files.read), start, end)

    content = f"{fingerprint(files.read)} {settings.split if split.sliced else ''}"
    size = sum(file.stat().st_size for file in files.read)
    return RowSource(settings, files.names, files.skipped, content, size, rows)


def open_sources(
    cfg: DataConfig, given: str | Sequence[str | Source], stage: str, side: Side
) -> list[RowSource]:
    """The sources of `data.path` (side `train`) or `data.eval` (side `test`); as `open_source`."""
    named = sources_of if side == "train" else held_out_sources
    sources = [open_source(source, stage, side) for source in named(cfg, given)]
    names = [name for source in sources for name in source.names]
    return sources if len(set(names)) == len(names) else [_in_full(source) for source in sources]


def _in_full(source: RowSource) -> RowSource:
    """With the folder in the files' names: two sources have a file of the same name."""
    path = Path(source.settings.path).expanduser()
    if not path.exists():
        return source
    folder = path if path.is_dir() else path.parent

    def rows() -> Iterator[RawRow]:
        return (replace(row, file=f"{folder}/{row.file}") for row in source.rows())

    return replace(source, names=tuple(f"{folder}/{name}" for name in source.names), rows=rows)


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

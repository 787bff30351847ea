"""Open the data sources of `data.path` and `data.eval`, and choose which of their rows are used."""

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
from rlhf_cli.data.config import DataConfig, SourceConfig
from rlhf_cli.data.sources.base import DataSource, DefaultSplit, RawRow, Split, parse_split
from rlhf_cli.data.sources.files import (
    find_data_files,
    fingerprint_files,
    read_rows,
    resolve_data_path,
)
from rlhf_cli.data.sources.hf_datasets import is_hub_folder, open_hub_dataset, open_saved_dataset
from rlhf_cli.data.sources.message_trees import assemble_trees
from rlhf_cli.errors import DataError
from rlhf_cli.resources import SHIPPED
from rlhf_cli.runs.inputs import is_saved_dataset

HELD_OUT_SEED = 0
"""Fixed, so that runs with other seeds, and later stages, hold out the same rows."""

Repeats = NDArray[np.int64]
"""[rows], how often each row of a source is sampled per epoch."""


@dataclass(frozen=True)
class Mixture:
    """The rows that are sampled from several data sources per epoch.

    Attributes:
        sources: at least one data source.
        repeats: of each source; None if every row is sampled `weight` times.
        held_out: number of rows held out for evaluation.
        source_counts: for the report, the row counts of each source.
    """

    sources: list[DataSource]
    repeats: list[Repeats | None]
    held_out: int = 0
    source_counts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def files(self) -> tuple[str, ...]:
        """File names of all sources."""
        return tuple(name for source in self.sources for name in source.names)

    @property
    def label(self) -> str:
        """The file name if there is one file, else the number of files; for messages."""
        return self.files[0] if len(self.files) == 1 else f"{len(self.files)} files"

    def rows(self) -> Iterator[RawRow]:
        """Read the sampled rows, source by source; a source of weight 2 is read twice."""
        for number, (source, repeats) in enumerate(zip(self.sources, self.repeats, strict=True)):
            passes = int(source.settings.weight) if repeats is None else int(repeats.max(initial=0))
            for repeat in range(passes):
                for index, row in enumerate(source.rows()):
                    if repeats is None or repeats[index] > repeat:
                        yield (
                            replace(row, source=number, repeat=repeat) if number or repeat else row
                        )

    @property
    def fingerprint(self) -> str:
        """Hash of the sampled rows and of how they are read."""
        whole = sha256()
        for source, repeats in zip(self.sources, self.repeats, strict=True):
            settings = source.settings
            whole.update(f"{source.fingerprint}\n{settings.format} {settings.columns}\n".encode())
            whole.update(str(settings.weight).encode() if repeats is None else repeats.tobytes())
        return whole.hexdigest()


def open_training_data(cfg: DataConfig, stage: str, seed: int) -> Mixture:
    """Open the training rows of `data.path`, without those that `data.eval` holds out.

    Args:
        cfg: data configuration.
        stage: name of the stage, which selects the shipped rows.
        seed: seed of the sampling from sources whose weight is not a whole number.

    Raises:
        DataError: a source does not exist, or no row is left.
    """
    held_out = cfg.eval if isinstance(cfg.eval, int | float) else 0
    return mix_training_rows(open_sources(cfg, cfg.path, stage, "train"), held_out, seed)


def open_held_out_data(cfg: DataConfig, stage: str) -> Mixture | None:
    """Open the rows that `data.eval` names or counts; None if there are none.

    Arguments and errors are those of `open_training_data`.
    """
    given = cfg.eval
    if isinstance(given, int | float):
        return select_held_out_rows(open_sources(cfg, cfg.path, stage, "train"), given)
    if given == "auto":
        given = SHIPPED if cfg.path == SHIPPED else "none"
    if given in ("", "none"):
        return None
    return mix_training_rows(open_sources(cfg, given, stage, "test"), 0, seed=0)


def open_sources(
    cfg: DataConfig, given: str | Sequence[str | SourceConfig], stage: str, split: DefaultSplit
) -> list[DataSource]:
    """Open the data sources of `data.path` (split `train`) or `data.eval` (split `test`).

    Raises:
        DataError: a source does not exist or cannot be read.
        ConfigError: `data.split` is invalid.
    """
    list_configs = list_sources if split == "train" else list_held_out_sources
    sources = [open_source(source, stage, split) for source in list_configs(cfg, given)]
    names = [name for source in sources for name in source.names]
    unique = len(set(names)) == len(names)
    return sources if unique else [_add_folder_to_names(source) for source in sources]


def list_sources(cfg: DataConfig, given: str | Sequence[str | SourceConfig]) -> list[SourceConfig]:
    """List the sources of `data.path`; keys that a source leaves out come from `data`."""
    listed = [given] if isinstance(given, str) else given
    sources = [SourceConfig(path=item) if isinstance(item, str) else item for item in listed]
    names = ("name", "revision", "split", "data_dir", "columns")
    return [
        replace(
            source,
            format=cfg.format if source.format == "auto" else source.format,
            **{name: getattr(source, name) or getattr(cfg, name) for name in names},
        )
        for source in sources
    ]


def list_held_out_sources(
    cfg: DataConfig, given: str | Sequence[str | SourceConfig]
) -> list[SourceConfig]:
    """List the sources of `data.eval`; `data.split` and `data.data_dir` do not apply to them."""
    return list_sources(replace(cfg, split="", data_dir=""), given)


def open_source(settings: SourceConfig, stage: str, default_split: DefaultSplit) -> DataSource:
    """Open one data source; rows that are messages of trees are assembled to trees.

    Raises:
        DataError: it does not exist or cannot be read.
        ConfigError: `data.split` is invalid.
    """
    source = _open(settings, stage, default_split)
    # pretraining takes each message as a document
    documents = settings.format == "text" or (settings.format == "auto" and stage == "pretrain")
    return source if documents else replace(source, rows=lambda: assemble_trees(source.rows()))


def _open(settings: SourceConfig, stage: str, default_split: DefaultSplit) -> DataSource:
    split = parse_split(settings.split)
    found = Path(settings.path).expanduser()
    local = settings.path in ("", SHIPPED) or found.exists()
    if not local and is_data_id(settings.path):
        return open_hub_dataset(settings, split, default_split)
    if settings.path != SHIPPED and not is_saved_dataset(found) and is_hub_folder(found, settings):
        return open_hub_dataset(settings, split, default_split)
    path = resolve_data_path(settings.path, stage, default_split)
    if settings.data_dir:
        path = resolve_data_path(str(path / settings.data_dir), stage, default_split)
    if is_saved_dataset(path):
        return open_saved_dataset(settings, path, split, default_split)
    return _open_files(settings, path, split, default_split)


def _open_files(
    settings: SourceConfig, path: Path, split: Split, default_split: DefaultSplit
) -> DataSource:
    if split.name not in ("", "train") and not path.is_dir():
        raise DataError(
            f"data.split: {path.name} is one file and has no split {split.name}; "
            "slice its rows, as in data.split=[:100], or leave it out"
        )
    found = find_data_files(path, split.name or default_split)

    def rows() -> Iterator[RawRow]:
        if not split.sliced:
            return read_rows(found.files)
        start, end = split.bounds(sum(1 for _ in read_rows(found.files)))
        return islice(read_rows(found.files), start, end)

    def fingerprint() -> str:
        return f"{fingerprint_files(found.files)} {settings.split if split.sliced else ''}"

    size = sum(file.stat().st_size for file in found.files)
    return DataSource(settings, found.names, found.skipped, fingerprint, size, rows)


def _add_folder_to_names(source: DataSource) -> DataSource:
    """Put the folder into the file names, to tell files of the same name apart."""
    path = Path(source.settings.path).expanduser()
    if not path.exists():
        return source
    folder = path if path.is_dir() else path.parent

    def rows() -> Iterator[RawRow]:
        return (replace(row, file=f"{folder}/{row.file}") for row in source.rows())

    return replace(source, names=tuple(f"{folder}/{name}" for name in source.names), rows=rows)


def mix_training_rows(sources: list[DataSource], held_out: int | float, seed: int) -> Mixture:
    """Choose the training rows of the sources by their weights.

    Args:
        sources: data sources of `data.path`.
        held_out: rows to leave out, as a number (`int`) or share (`float`); 0 for none.
        seed: seed of the sampling from sources whose weight is not a whole number.

    Raises:
        DataError: no row is left.
    """
    whole = all(source.settings.weight == int(source.settings.weight) for source in sources)
    if not held_out and whole:
        return Mixture(sources, [None] * len(sources))
    masks = _held_out_masks(sources, held_out)
    all_repeats: list[Repeats | None] = []
    counts = []
    for number, (source, mask) in enumerate(zip(sources, masks, strict=True)):
        rng = np.random.default_rng((seed, number))
        repeats = _draw_repeats(~mask, source.settings.weight, rng)
        all_repeats.append(repeats)
        counts.append(_count_rows(source, mask, repeats))
    if not any(count["drawn"] for count in counts):
        raise DataError("data.path: no row is sampled; the weights are too small for so few rows")
    return Mixture(sources, all_repeats, sum(count["held_out"] for count in counts), counts)


def select_held_out_rows(sources: list[DataSource], held_out: int | float) -> Mixture:
    """Choose the rows that `mix_training_rows` leaves out, each once.

    Raises:
        DataError: no row would be left for training.
    """
    masks = _held_out_masks(sources, held_out)
    return Mixture(sources, [mask.astype(np.int64) for mask in masks])


def _count_rows(
    source: DataSource, held_out: NDArray[np.bool_], repeats: Repeats
) -> dict[str, Any]:
    return {
        "path": source.settings.path,
        "weight": source.settings.weight,
        "rows": len(held_out),
        "held_out": int(held_out.sum()),
        "drawn": int(repeats.sum()),
    }


def _held_out_masks(sources: list[DataSource], held_out: int | float) -> list[NDArray[np.bool_]]:
    """[rows] of each source, True where a row is held out; sampled over the rows of all sources."""
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


def _draw_repeats(available: NDArray[np.bool_], weight: float, rng: np.random.Generator) -> Repeats:
    """Draw every row `floor(weight)` times, and a random share of the rows once more."""
    repeats = available * int(weight)
    rows = np.flatnonzero(available)
    extra = round((weight - int(weight)) * len(rows))
    repeats[rng.permutation(rows)[:extra]] += 1
    return repeats.astype(np.int64)

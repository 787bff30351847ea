"""Sources: the files or the hub data set behind each item of `data.path` and `data.eval`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from rlhf_cli.config.paths import is_data_id
from rlhf_cli.data.cache import fingerprint
from rlhf_cli.data.config import DataConfig, Source
from rlhf_cli.data.reading.files import data_files, read_rows, resolve
from rlhf_cli.data.reading.hub import is_hub_folder, open_hub
from rlhf_cli.data.reading.mixture import (
    Mixture,
    held_out_rows,
    held_out_sources,
    sources_of,
    training_rows,
)
from rlhf_cli.data.reading.raw import RawRow, RowSource, Side
from rlhf_cli.data.reading.saved import open_saved
from rlhf_cli.data.reading.splits import Split, parse_split
from rlhf_cli.data.reading.trees import gather_trees
from rlhf_cli.errors import DataError
from rlhf_cli.resources import SHIPPED
from rlhf_cli.runs.inputs import is_saved_dataset


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
    if settings.path != SHIPPED and not is_saved_dataset(found) and is_hub_folder(found, settings):
        return open_hub(settings, split, side)
    path = resolve(settings.path, stage, side)
    if settings.data_dir:
        path = resolve(str(path / settings.data_dir), stage, side)
    if is_saved_dataset(path):
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

"""Folders that `save_to_disk` of `datasets` wrote: one data set, or one for each split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_cli.data.cache import fingerprint
from rlhf_cli.data.config import Source
from rlhf_cli.data.reading.files import HELD_OUT
from rlhf_cli.data.reading.raw import RawRow, RowSource, Side
from rlhf_cli.data.reading.splits import Split
from rlhf_cli.errors import DataError, first_line
from rlhf_cli.runs.inputs import is_saved_dataset

_SPLITS, _STATE = "dataset_dict.json", "state.json"


def open_saved(settings: Source, folder: Path, split: Split, side: Side) -> RowSource:
    """The rows of such a folder.

    Raises:
        DataError: it has no such split, or `datasets` cannot read it.
    """
    if settings.name:
        raise DataError(
            f"data.name: got {settings.name}, but {folder} was written by save_to_disk and has no "
            "configurations; leave it out"
        )
    chosen = _of_split(folder, split, side)
    table = _load(chosen)
    start, end = split.bounds(len(table)) if split.sliced else (0, len(table))
    label = chosen.name if chosen == folder else f"{folder.name}/{chosen.name}"

    def rows() -> Iterator[RawRow]:
        for index in range(start, end):
            yield RawRow(label, index + 1, table[index], size=1)

    written = sorted(chosen.glob("*.arrow"))
    content = f"{fingerprint([chosen / _STATE, *written])} {settings.split if split.sliced else ''}"
    return RowSource(settings, (label,), (), content, end - start, rows)


def _of_split(folder: Path, split: Split, side: Side) -> Path:
    """The folder of one data set: of a folder of splits, that of the wanted one."""
    if not (folder / _SPLITS).is_file():
        if split.name not in ("", "train"):
            raise DataError(
                f"data.split: {folder} holds one data set and has no split {split.name}; slice its "
                "rows, as in data.split=[:100], or leave it out"
            )
        return folder
    names = sorted(child.name for child in folder.iterdir() if is_saved_dataset(child))
    wanted = [split.name] if split.name else ["train"] if side == "train" else list(HELD_OUT)
    found = [name for name in wanted if name in names]
    if not found:
        there = ", ".join(names) or "none"
        raise DataError(
            f"{folder}: no split {split.name or side}; save_to_disk wrote {there}. "
            f"Try data.split={names[0] if names else 'NAME'}"
        )
    return folder / found[0]


def _load(folder: Path) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # of many kinds, for damaged files and for newer versions' columns
        raise DataError(
            f"{folder}: datasets cannot load what save_to_disk wrote ({first_line(error)})"
        ) from error

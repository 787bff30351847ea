"""The files that a local folder of rows is read from, found without torch."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from rlhf_cli.config.paths import DATA_SUFFIXES
from rlhf_cli.runs import contents, lock

METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")
"""Written by `datasets` beside rows; never rows themselves."""

_CONFIGS = re.compile(r"\A---\n(.*\n)*?configs:", re.MULTILINE)


def data_files(path: Path, *, name: str = "", data_dir: str = "") -> Iterator[Path]:
    """The files of rows that a data path stands for.

    Args:
        path: a file, or a folder; of a folder the direct children are read, and files below them
            only where the folder was written by `save_to_disk` or is read through `datasets`.
        name: `data.name`.
        data_dir: `data.data_dir`, a folder in `path`.
    """
    folder = path / data_dir
    if not folder.is_dir():
        yield folder
        return
    direct = [file for file in folder.iterdir() if _holds_rows(file)]
    recursive = name or is_saved(folder) or lists_configs(folder) or not direct
    yield from _below(folder) if recursive else direct


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def lists_configs(folder: Path) -> bool:
    """Whether the card of a data set (README.md) lists configurations."""
    card = folder / "README.md"
    return card.is_file() and bool(_CONFIGS.match(card.read_text("utf-8", "replace")))


def _holds_rows(file: Path) -> bool:
    name = file.name.lower().removesuffix(".gz")
    hidden = name.startswith(".")
    rows = name.endswith((*DATA_SUFFIXES, ".arrow")) and file.name not in METADATA
    return rows and not hidden and file.is_file()


def _below(folder: Path) -> Iterator[Path]:
    """All files of rows in a folder and below it, without hidden folders and those of runs."""
    for parent, folders, files in os.walk(folder):
        here = Path(parent)
        folders[:] = [name for name in folders if not _is_left_out(here / name)]
        yield from (here / name for name in files if _holds_rows(here / name))


def _is_left_out(folder: Path) -> bool:
    """A hidden folder, or that of a run: its files change while it runs."""
    marks = (contents.MANIFEST, lock.NAME)  # a run that begins has no manifest yet
    is_run = (folder / contents.CONFIG).is_file() and any((folder / m).is_file() for m in marks)
    return folder.name.startswith(".") or is_run

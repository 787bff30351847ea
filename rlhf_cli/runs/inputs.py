"""Local files that a run reads: found, recorded when it starts, compared when it starts again.

A file of the recorded size and modification time counts as unchanged, so that a finished run
returns at once. Otherwise its content decides. Repositories on the hub have commits instead.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_cli.config.paths import DATA_SUFFIXES, Input, named_inputs
from rlhf_cli.config.schema import DataPath, FunctionPath
from rlhf_cli.errors import CheckpointError, ModelError
from rlhf_cli.runs import lock, run_files
from rlhf_cli.runs.artifact import find_model_folder, read_adapter_base
from rlhf_cli.runs.digest import file_sha256
from rlhf_cli.runs.run_files import hash_samples

METADATA_FILES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")
"""Files that `datasets` writes beside rows; they hold no rows."""

MODEL_FILES = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.model",
    "merges.txt",
    "vocab.txt",
    "stacked_*/*.safetensors",
)
"""Patterns of the files that a model folder is read from."""

_CARD_CONFIGS = re.compile(r"\A---\n(.*\n)*?configs:", re.MULTILINE)


def list_data_files(path: Path, *, name: str = "", data_dir: str = "") -> Iterator[Path]:
    """List the files with rows at a data path.

    Args:
        path: a file or folder; in a folder only direct children are read, unless it was written by
            `save_to_disk` or is read through `datasets`.
        name: `data.name`.
        data_dir: `data.data_dir`, a folder in `path`.
    """
    folder = path / data_dir
    if not folder.is_dir():
        yield folder
        return
    direct = [file for file in folder.iterdir() if _holds_rows(file)]
    recursive = name or is_saved_dataset(folder) or card_lists_configs(folder) or not direct
    yield from _walk(folder) if recursive else direct


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def card_lists_configs(folder: Path) -> bool:
    """Whether a dataset card (README.md) lists configurations."""
    card = folder / "README.md"
    return card.is_file() and bool(_CARD_CONFIGS.match(card.read_text("utf-8", "replace")))


def _holds_rows(file: Path) -> bool:
    name = file.name.lower().removesuffix(".gz")
    hidden = name.startswith(".")
    rows = name.endswith((*DATA_SUFFIXES, ".arrow")) and file.name not in METADATA_FILES
    return rows and not hidden and file.is_file()


def _walk(folder: Path) -> Iterator[Path]:
    """All files with rows in a folder and below it, without hidden folders and run folders."""
    for parent, folders, files in os.walk(folder):
        here = Path(parent)
        folders[:] = [name for name in folders if not _is_skipped(here / name)]
        yield from (here / name for name in files if _holds_rows(here / name))


def _is_skipped(folder: Path) -> bool:
    """Whether a folder is hidden or belongs to a run, whose files change while it runs."""
    marks = (run_files.MANIFEST, lock.NAME)  # a run that starts has no manifest yet
    is_run = (folder / run_files.CONFIG).is_file() and any((folder / m).is_file() for m in marks)
    return folder.name.startswith(".") or is_run


FileState = dict[str, Any]
"""Size in bytes, modification time in ns, and content hash."""

Recorded = dict[str, dict[str, FileState]]
"""Key -> path of a file -> its state."""


def record_inputs(values: dict[str, Any], config: type[Any]) -> Recorded:
    """Record size, time and hash of the files that the keys of a configuration name.

    Args:
        values: the resolved configuration, with absolute paths.
        config: its class.
    """
    return {
        named.key: {str(file): _file_state(file) for file in files}
        for named, files in _local(values, config)
    }


def find_changes(before: Recorded, values: dict[str, Any], config: type[Any]) -> list[str]:
    """Compare the files that a configuration names with those recorded; one line per change.

    Args:
        before: the record of an earlier start; keys that it lacks are not compared.
        values: the resolved configuration, with absolute paths.
        config: its class.
    """
    found = []
    for named, files in _local(values, config):
        if named.key not in before:
            continue
        old, now = before[named.key], {str(file): file for file in files}
        # older versions also recorded files that are not read; one that still exists is not gone
        lines = [f"{path} is gone" for path in old if path not in now and not Path(path).exists()]
        lines += [f"{path} is new" for path in now if path not in old]
        lines += [
            f"{path} has other content"
            for path, file in now.items()
            if path in old and _differs(file, old[path])
        ]
        found += [f"  {named.key}: {line}" for line in lines]
    return found


def list_input_files(values: dict[str, Any], config: type[Any]) -> dict[str, list[Path]]:
    """List the local files that each key names; as `record_inputs`."""
    return {named.key: files for named, files in _local(values, config)}


def _local(values: dict[str, Any], config: type[Any]) -> Iterator[tuple[Input, list[Path]]]:
    for named in named_inputs(values, config):
        if Path(named.value).is_absolute():  # hub ids and shipped names are not
            yield named, sorted(file for file in _files(named) if file.is_file())


def _files(named: Input) -> Iterator[Path]:
    path = Path(named.value)
    if isinstance(named.kind, FunctionPath):
        yield Path(named.value.rpartition(":")[0])
    elif not path.is_dir():
        yield path
    elif isinstance(named.kind, DataPath):
        beside = {key: str(named.beside.get(key) or "") for key in ("name", "data_dir")}
        yield from list_data_files(path, **beside)
    else:
        yield from _model_files(named.value)


def _model_files(path: str) -> Iterator[Path]:
    """Files of a model, and of the local base of an adapter."""
    try:
        folder = find_model_folder(path)
        base = read_adapter_base(folder)[0] if folder else ""
        folders = (folder, find_model_folder(base) if Path(base).is_absolute() else None)
    except (ModelError, CheckpointError):  # reported when the model is loaded
        return
    for each in filter(None, folders):
        for pattern in MODEL_FILES:
            yield from each.glob(pattern)


def _file_state(file: Path) -> FileState:
    status = file.stat()
    return {
        "bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "sha256": _digest(file),
    }


def _differs(file: Path, before: FileState) -> bool:
    status = file.stat()
    if status.st_size != before["bytes"]:
        return True
    same = status.st_mtime_ns == before["modified_ns"] or _digest(file) == before["sha256"]
    return not same


def _digest(file: Path) -> str:
    """SHA-256 of the content; of evenly spaced parts for weights."""
    if file.suffix != ".safetensors":
        return file_sha256(file)
    digest = hashlib.sha256()
    hash_samples(digest, file)
    return digest.hexdigest()

"""The local files that a run reads: recorded when it starts, compared when it is started again.

A file whose size and modification time are those recorded is taken to be unchanged, so that a
finished run returns at once. Otherwise its content decides. What is on the hub has commits instead.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_cli.config.paths import Input, named_inputs
from rlhf_cli.config.schema import DataPath, FunctionPath
from rlhf_cli.errors import CheckpointError, ModelError
from rlhf_cli.runs.artifact import local_folder, recorded_base
from rlhf_cli.runs.data_files import data_files
from rlhf_cli.runs.files import sampled

MODEL_FILES = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.model",
    "merges.txt",
    "vocab.txt",
    "stacked_*/*.safetensors",
)
Facts = dict[str, Any]
Recorded = dict[str, dict[str, Facts]]
"""Key -> path of a file -> its size in bytes, modification time in ns, and content hash."""


def record(values: dict[str, Any], config: type[Any]) -> Recorded:
    """The files of every key that names something to read.

    Args:
        values: the resolved configuration, with absolute paths.
        config: its class.
    """
    return {
        named.key: {str(file): _facts(file) for file in files}
        for named, files in _local(values, config)
    }


def changes(before: Recorded, values: dict[str, Any], config: type[Any]) -> list[str]:
    """A line for every key whose files are not those that were recorded.

    Args:
        before: of an earlier start; keys that it does not have are not compared.
        values: the resolved configuration of now, with absolute paths.
        config: its class.
    """
    found = []
    for named, files in _local(values, config):
        if named.key not in before:
            continue
        old, now = before[named.key], {str(file): file for file in files}
        # an older version recorded files that were not read; one that is still here is not gone
        lines = [f"{path} is gone" for path in old if path not in now and not Path(path).exists()]
        lines += [f"{path} is new" for path in now if path not in old]
        lines += [
            f"{path} has other content"
            for path, file in now.items()
            if path in old and _differs(file, old[path])
        ]
        found += [f"  {named.key}: {line}" for line in lines]
    return found


def files_read(values: dict[str, Any], config: type[Any]) -> dict[str, list[Path]]:
    """Key -> the local files that it names; as `record`."""
    return {named.key: files for named, files in _local(values, config)}


def _local(values: dict[str, Any], config: type[Any]) -> Iterator[tuple[Input, list[Path]]]:
    for named in named_inputs(values, config):
        if Path(named.value).is_absolute():  # a name of the hub, or of what is shipped, is not
            yield named, sorted(file for file in _files(named) if file.is_file())


def _files(named: Input) -> Iterator[Path]:
    path = Path(named.value)
    if isinstance(named.kind, FunctionPath):
        yield Path(named.value.rpartition(":")[0])
    elif not path.is_dir():
        yield path
    elif isinstance(named.kind, DataPath):
        beside = {key: str(named.beside.get(key) or "") for key in ("name", "data_dir")}
        yield from data_files(path, **beside)
    else:
        yield from _model_files(named.value)


def _model_files(path: str) -> Iterator[Path]:
    """Those of a model, and of the local base of an adapter."""
    try:
        folder = local_folder(path)
        base = recorded_base(folder)[0] if folder else ""
        folders = (folder, local_folder(base) if Path(base).is_absolute() else None)
    except (ModelError, CheckpointError):  # reported where the model is loaded
        return
    for each in filter(None, folders):
        for pattern in MODEL_FILES:
            yield from each.glob(pattern)


def _facts(file: Path) -> Facts:
    status = file.stat()
    return {
        "bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "sha256": _digest(file),
    }


def _differs(file: Path, before: Facts) -> bool:
    status = file.stat()
    if status.st_size != before["bytes"]:
        return True
    same = status.st_mtime_ns == before["modified_ns"] or _digest(file) == before["sha256"]
    return not same


def _digest(file: Path) -> str:
    """Of the whole content; of weights, of evenly spaced parts."""
    with file.open("rb") as stream:
        if file.suffix != ".safetensors":
            return hashlib.file_digest(stream, "sha256").hexdigest()
    digest = hashlib.sha256()
    for part in sampled(file):
        digest.update(part)
    return digest.hexdigest()

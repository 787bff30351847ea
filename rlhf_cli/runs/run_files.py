"""What a run writes into its folder, and the removal of it before another run starts there.

All names that a run gives its files stand here, so that a fresh start takes over none of them.


Small files that are whole or not there, lines of text, and the error for an unwritable place.
"""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_cli.errors import CheckpointError

CONFIG, MANIFEST, ARTIFACT = "config.yaml", "manifest.json", "artifact.json"
METRICS, LOG, SAMPLES = "metrics.jsonl", "log.txt", "samples.jsonl"

CHECKPOINTS = "checkpoints"
MODEL = "model"
BASE = "base"
"""The base of the run's adapter, where those weights are nowhere else."""

TOKENIZER = "tokenizer"
"""A tokenizer that was trained for several processes."""

RANK_LOGS = "ranks"
TRACKERS = "trackers"

FILES = (CONFIG, ARTIFACT, METRICS, LOG, SAMPLES)
FOLDERS = (MODEL, BASE, TOKENIZER, RANK_LOGS, TRACKERS)
_PARTIAL = ".tmp"
_PARTIAL_CHECKPOINTS = ("step-*.tmp", "step-*.old")


def written_by_run(path: Path) -> list[Path]:
    """The entries of a run folder that have the names of a run's own, the manifest last.

    `checkpoints` counts where it is empty or holds interrupted writes; with anything else in it,
    only those do.
    """
    names = [*FILES, *FOLDERS, *(f"{name}{_PARTIAL}" for name in FOLDERS)]
    found = [path / name for name in names]
    found += [part for name in (*FILES, MANIFEST) for part in path.glob(f".{name}.*")]
    found += [part for glob in _PARTIAL_CHECKPOINTS for part in (path / CHECKPOINTS).glob(glob)]
    return [entry for entry in [*found, path / MANIFEST] if entry.exists() or entry.is_symlink()]


def remove(path: Path) -> list[str]:
    """Remove all that a run without a checkpoint or result left in its folder.

    The manifest goes last: a removal that is interrupted can be repeated.

    Returns:
        The names of what is left: files of the user's.

    Raises:
        OSError: something cannot be removed.
    """
    for entry in written_by_run(path):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    checkpoints = path / CHECKPOINTS
    if checkpoints.is_dir() and not any(checkpoints.iterdir()):
        checkpoints.rmdir()
    return sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))


def write_json_atomic(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it.

    Raises:
        CheckpointError: The disk is full or the folder read-only; the old file stands.
    """
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text_atomic(path: Path, text: str) -> None:
    """Write beside the file, flush to disk, then rename over it.

    Raises:
        CheckpointError: As `write_json_atomic`.
    """
    try:
        _replace(path, text)
    except OSError as error:
        raise unwritable(path, error) from error


def _replace(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp lets only the owner read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_lines(path: Path) -> list[str]:
    r"""The lines of a UTF-8 file without their ends; a byte order mark is dropped.

    Only `\n` and `\r\n` end a line. `str.splitlines` and text mode also cut at characters that JSON
    leaves unescaped inside a string, such as U+2028, U+0085 or a lone `\r` in plain text.
    """
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        return [line.removesuffix("\n").removesuffix("\r") for line in file]


def read_json_lines(path: Path) -> list[Any]:
    """The value of each line of a `.jsonl` file that we append to.

    A last line without its end is left out: the process was killed while it wrote.
    """
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def sampled(file: Path) -> Iterator[bytes]:
    """Evenly spaced parts of a file's bytes, 4 MiB in all; all of them where it is smaller."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        for part in range(_PARTS):
            stream.seek(part * max(1, size // _PARTS))
            yield stream.read(_PART_BYTES)


_PARTS, _PART_BYTES = 64, 1 << 16


def unwritable(path: Path, error: OSError) -> CheckpointError:
    """The line for a place that cannot be written: where, why, and what to do."""
    reason = (error.strerror or type(error).__name__).lower()
    room = "free disk space or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    advice = f"{room}give another output_dir=FOLDER, and start again"
    return CheckpointError(f"{path}: cannot be written ({reason}); {advice}")

"""Files of a run folder: their names, and how they are written, read and removed."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_cli.errors import CheckpointError

CONFIG, MANIFEST, ARTIFACT = "config.yaml", "manifest.json", "artifact.json"
METRICS, LOG, SAMPLES = "metrics.jsonl", "log.txt", "samples.jsonl"

SERVER_LOG = "server.log"
"""Output of an inference server that the run has started."""

SPIKES = "spikes.jsonl"
"""Steps whose loss rose suddenly, with their rows."""

FIXED_SAMPLES = "fixed_samples.jsonl"
"""Responses to the same few prompts at each evaluation."""

REPORT = "report.html"

CHECKPOINTS = "checkpoints"
MODEL = "model"
BASE = "base"
"""Base model of the run's adapter, if its weights are stored nowhere else."""

TOKENIZER = "tokenizer"
"""Tokenizer that was trained before several processes started."""

RANK_LOGS = "ranks"
TRACKERS = "trackers"

JOB_SCRIPT, JOB_CONFIG, JOB_LOG = "job.sbatch", "job.yaml", "slurm.log"
"""Files of a Slurm job, which are there before the run starts and stay when it starts anew."""

JOB_FILES = (JOB_SCRIPT, JOB_CONFIG, JOB_LOG)

FILES = (CONFIG, ARTIFACT, METRICS, LOG, SERVER_LOG, SAMPLES, SPIKES, FIXED_SAMPLES, REPORT)
FOLDERS = (MODEL, BASE, TOKENIZER, RANK_LOGS, TRACKERS)
_PARTIAL = ".tmp"
_PARTIAL_CHECKPOINTS = ("step-*.tmp", "step-*.old")


def list_run_files(path: Path) -> list[Path]:
    """List what a run without a complete checkpoint wrote into its folder, the manifest last.

    Of `checkpoints` only interrupted writes are listed.
    """
    names = [*FILES, *FOLDERS, *(f"{name}{_PARTIAL}" for name in FOLDERS)]
    found = [path / name for name in names]
    found += [part for name in (*FILES, MANIFEST) for part in path.glob(f".{name}.*")]
    found += [part for glob in _PARTIAL_CHECKPOINTS for part in (path / CHECKPOINTS).glob(glob)]
    return [entry for entry in [*found, path / MANIFEST] if entry.exists() or entry.is_symlink()]


def remove_run_files(path: Path) -> list[str]:
    """Remove what a run without a checkpoint or result left in its folder.

    The manifest is removed last, so that an interrupted removal can be repeated.

    Returns:
        Names of the entries that remain; they are the user's.

    Raises:
        OSError: an entry cannot be removed.
    """
    for entry in list_run_files(path):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    checkpoints = path / CHECKPOINTS
    if checkpoints.is_dir() and not any(checkpoints.iterdir()):
        checkpoints.rmdir()
    return [name for name in list_entries(path) if name not in JOB_FILES]


def list_entries(path: Path) -> list[str]:
    """List the names in a folder, without hidden ones."""
    return sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))


def write_json_atomic(path: Path, value: Any) -> None:
    """Write JSON atomically: a reader sees the old file or the new one.

    Raises:
        CheckpointError: the disk is full or the folder read-only; the old file remains.
    """
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text_atomic(path: Path, text: str) -> None:
    """Write text atomically: write a temporary file, flush it to disk, then rename it.

    Raises:
        CheckpointError: as for `write_json_atomic`.
    """
    try:
        _replace(path, text)
    except OSError as error:
        raise write_error(path, error) from error


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


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object; empty if there is no such file.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file does not hold a JSON object.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except TypeError as error:
        raise ValueError(f"{path}: not a JSON object") from error


def read_lines(path: Path) -> list[str]:
    r"""Read the lines of a UTF-8 file without line ends; a byte order mark is dropped.

    Only `\n` and `\r\n` end a line. `str.splitlines` and text mode also cut at characters that JSON
    leaves unescaped inside a string, such as U+2028, U+0085 or a lone `\r` in plain text.
    """
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        return [line.removesuffix("\n").removesuffix("\r") for line in file]


def read_json_lines(path: Path) -> list[Any]:
    """Read the values of a `.jsonl` file that a run appends to.

    A last line without a line end is ignored: the process was killed while it wrote.
    """
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def format_json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Format rows as the text of a `.jsonl` file."""
    return "".join(to_json_line(row) for row in rows)


def to_json_line(row: Mapping[str, Any]) -> str:
    """A row as a line of `.jsonl`; values of tables that JSON lacks, such as dates, as text."""
    text = json.dumps(row, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can express
        text = json.dumps(row, default=str)
    return text + "\n"


def append_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a `.jsonl` file.

    Raises:
        CheckpointError: the disk is full, or the folder read-only.
    """
    try:
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(format_json_lines(rows))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error


def hash_samples(digest: Any, file: Path) -> None:
    """Feed evenly spaced parts of a file to a hash: 4 MiB, or all of a smaller file."""
    for part in _sample_bytes(file):
        digest.update(part)


def hash_name_and_size(digest: Any, file: Path) -> None:
    """Feed a file's name and size to a hash, as one line."""
    digest.update(f"{file.name} {file.stat().st_size}\n".encode())


def _sample_bytes(file: Path) -> Iterator[bytes]:
    """Yield evenly spaced parts of a file, 4 MiB in total; the whole file if it is smaller."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        for part in range(_PARTS):
            stream.seek(part * max(1, size // _PARTS))
            yield stream.read(_PART_BYTES)


_PARTS, _PART_BYTES = 64, 1 << 16


def write_error(path: Path, error: OSError) -> CheckpointError:
    """Build the error for a path that cannot be written: path, reason and advice."""
    reason = (error.strerror or type(error).__name__).lower()
    room = "free disk space or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    advice = f"{room}give another output_dir=FOLDER, and start again"
    return CheckpointError(f"{path}: cannot be written ({reason}); {advice}")

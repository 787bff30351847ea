"""A run's `manifest.json`: command, versions, inputs, start times and outcome."""

import contextlib
import hashlib
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rlhf_cli import __version__
from rlhf_cli.config.yaml_files import to_yaml
from rlhf_cli.errors import CheckpointError, Interrupted
from rlhf_cli.runs import hub, lock, log, run_files
from rlhf_cli.runs.run_files import read_json, write_json_atomic

NAME = run_files.MANIFEST

ORIGINS = "origins"
"""Name of the mapping of each key that somebody set to where that was."""

_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "peft", "hydra-core", "safetensors")


def config_to_save(resolved: dict[str, Any]) -> dict[str, Any]:
    """Select the keys that `config.yaml` holds: all but `output_dir` and `resume`."""
    return {key: value for key, value in resolved.items() if key not in ("output_dir", "resume")}


def write_start(
    path: Path,
    command: str,
    argv: list[str],
    resolved: dict[str, Any],
    inputs: dict[str, Any] | None = None,
    origins: dict[str, str] | None = None,
) -> None:
    """Write the manifest of a run that starts; earlier start times are kept.

    Args:
        path: the run folder.
        command: the stage.
        argv: command-line arguments.
        resolved: every key with its value.
        inputs: the files that the run reads, from `inputs.record_inputs`.
        origins: where each key that is no default was set, from `config.provenance.trace`.

    Raises:
        CheckpointError: the manifest cannot be written.
    """
    try:
        starts = list(read(path).get("starts", []))
    except CheckpointError:
        starts = []
    config = to_yaml(command, config_to_save(resolved))
    manifest = {
        "status": "running",
        "command": command,
        "argv": argv,
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "git_commit": git_commit(),
        "versions": versions(),
        "hub": hub.commits(),
        "inputs": inputs or {},
        ORIGINS: origins or {},
        "starts": [*starts, _now()],
    }
    write_json_atomic(path / NAME, manifest)


def record_commits(path: Path) -> None:
    """Record the commits of the hub ids of this command, for when the run is resumed.

    Raises:
        CheckpointError: the manifest cannot be written.
    """
    _update(path, {"hub": hub.commits()})


def commits(path: Path) -> dict[str, str]:
    """Read the recorded commits of a run: `ID@REVISION` -> commit."""
    return dict(read(path).get("hub", {}))


def complete(path: Path, **extra: Any) -> None:
    """Mark the run as complete, with further facts such as `steps=200`.

    Raises:
        CheckpointError: the manifest cannot be written.
    """
    _end(path, "complete", extra)


def fail(path: Path, error: BaseException) -> None:
    """Record the error that ended the run; not being able to write is ignored."""
    interrupted = isinstance(error, KeyboardInterrupt | Interrupted)
    reason = log.redact(f"{type(error).__name__}: {error}")
    with contextlib.suppress(CheckpointError):
        _end(path, "interrupted" if interrupted else "failed", {"error": reason})


def _end(path: Path, how: str, extra: dict[str, Any]) -> None:
    _update(path, {**extra, "status": how, "ended": _now()})


def _update(path: Path, values: dict[str, Any]) -> None:
    lock.require_owned(path)
    write_json_atomic(path / NAME, {**read(path), **values})


def read(path: Path) -> dict[str, Any]:
    """Read the manifest of a run folder; empty if there is none.

    Raises:
        CheckpointError: the manifest is damaged or cannot be read.
    """
    file = path / NAME
    try:
        return read_json(file)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise CheckpointError(f"{file}: not valid JSON; remove it to run again") from None


def status(path: Path) -> str:
    """Read the status: running, complete, interrupted or failed; `unknown` without a manifest."""
    return str(read(path).get("status", "unknown"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_commit(folder: Path | None = None) -> str:
    """Find the git commit of a folder (default: the working folder); empty outside of git."""
    try:
        command = ["git", "rev-parse", "HEAD"]
        found = subprocess.run(
            command, capture_output=True, text=True, timeout=5, check=False, cwd=folder
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def versions() -> dict[str, str]:
    """Versions of Python, of this package, and of the installed packages that decide results."""
    found = {"python": platform.python_version(), "rlhf-cli": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

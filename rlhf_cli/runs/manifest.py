"""`manifest.json`: what a run is, when it was started and how it ended."""

import contextlib
import hashlib
import json
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rlhf_cli import __version__
from rlhf_cli.config.yaml_files import to_yaml
from rlhf_cli.errors import CheckpointError, Interrupted
from rlhf_cli.runs import contents, hub, lock, secrets
from rlhf_cli.runs.files import write_json_atomic

NAME = contents.MANIFEST
_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "peft", "hydra-core", "safetensors")


def saved(resolved: dict[str, Any]) -> dict[str, Any]:
    """What `config.yaml` holds: all but where a run is written and whether it goes on."""
    return {key: value for key, value in resolved.items() if key not in ("output_dir", "resume")}


def begin(
    path: Path,
    command: str,
    argv: list[str],
    resolved: dict[str, Any],
    inputs: dict[str, Any] | None = None,
) -> None:
    """Say what is about to run; a run that is started again keeps its earlier starts.

    Args:
        path: the run folder.
        command: the stage.
        argv: the words of the command line.
        resolved: every key with its value.
        inputs: the files that the run reads, as of `inputs.record`.

    Raises:
        CheckpointError: It cannot be written.
    """
    try:
        starts = list(read(path).get("starts", []))
    except CheckpointError:
        starts = []
    config = to_yaml(command, saved(resolved))
    manifest = {
        "status": "running",
        "command": command,
        "argv": argv,
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "git_commit": git_commit(),
        "versions": _versions(),
        "hub": hub.commits(),
        "inputs": inputs or {},
        "starts": [*starts, _now()],
    }
    write_json_atomic(path / NAME, manifest)


def record_commits(path: Path) -> None:
    """Write down which commit each hub id of this command means, for when the run is continued.

    Raises:
        CheckpointError: It cannot be written.
    """
    _change(path, {"hub": hub.commits()})


def commits(path: Path) -> dict[str, str]:
    """`ID@REVISION` -> commit of the hub ids of a run."""
    return dict(read(path).get("hub", {}))


def complete(path: Path, **extra: Any) -> None:
    """Say that the run is done, with anything else worth knowing (`steps=200`).

    Raises:
        CheckpointError: It cannot be written.
    """
    _end(path, "complete", extra)


def fail(path: Path, error: BaseException) -> None:
    """Say why the run ended early, if that can still be written: the error itself matters more."""
    interrupted = isinstance(error, KeyboardInterrupt | Interrupted)
    reason = secrets.redact(f"{type(error).__name__}: {error}")
    with contextlib.suppress(CheckpointError):
        _end(path, "interrupted" if interrupted else "failed", {"error": reason})


def _end(path: Path, how: str, extra: dict[str, Any]) -> None:
    _change(path, {**extra, "status": how, "ended": _now()})


def _change(path: Path, values: dict[str, Any]) -> None:
    lock.require_owned(path)
    write_json_atomic(path / NAME, {**read(path), **values})


def read(path: Path) -> dict[str, Any]:
    """The manifest of a run folder, or nothing.

    Raises:
        CheckpointError: It is damaged or cannot be read.
    """
    file = path / NAME
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError):
        raise CheckpointError(f"{file}: not valid JSON; remove it to run again") from None


def status(path: Path) -> str:
    """`running`, `complete`, `interrupted` or `failed`; `unknown` without a manifest."""
    return str(read(path).get("status", "unknown"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_commit(folder: Path | None = None) -> str:
    """The commit of a folder, by default the working folder, or nothing outside of git."""
    try:
        command = ["git", "rev-parse", "HEAD"]
        found = subprocess.run(
            command, capture_output=True, text=True, timeout=5, check=False, cwd=folder
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "rlhf-cli": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

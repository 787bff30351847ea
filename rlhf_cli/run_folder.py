"""A run's folder before torch is loaded: who owns it, what it holds, and whether to go on."""

import hashlib
import json
import os
import platform
import secrets
import subprocess
import tempfile
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from rlhf_cli import __version__, lock
from rlhf_cli.dialect import to_yaml
from rlhf_cli.errors import CheckpointError, ConfigError, ModelError
from rlhf_cli.recipe import read
from rlhf_cli.schema import show

Decision = Literal["fresh", "continue", "complete"]

CONFIG, MANIFEST = "config.yaml", "manifest.json"
# Where a run is written and whether it goes on are not part of what it computes.
_NOT_SAVED = ("output_dir", "resume")
_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "peft", "hydra-core", "safetensors")


def allocate(stage: str, output_dir: str) -> Path:
    """The folder of a run: the one given, else a new `runs/<stage>-<time>-<id>`."""
    if output_dir:
        return Path(output_dir).absolute()
    while True:
        name = f"{stage}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        path = Path("runs", name).absolute()
        try:
            path.mkdir(parents=True)
        except FileExistsError:  # another run of the same second drew the same id
            continue
        return path


def claim(path: Path, resolved: dict[str, Any], stage: str, resume: str) -> Decision:
    """Take a folder for a run and say what is to be done in it.

    Args:
        path: The folder; made if it is not there.
        resolved: Every key of the run with its value.
        stage: The stage that is to run.
        resume: `auto`, `never`, or the path of a checkpoint.

    Returns:
        `fresh` and `continue` leave this process as the folder's owner until it ends; `complete`
        leaves the folder as it is.

    Raises:
        ConfigError: The folder holds something else than this run.
        CheckpointError: Another process owns the folder, or it cannot be written.
    """
    saved = {key: value for key, value in resolved.items() if key not in _NOT_SAVED}
    try:
        decision = _decide(path, saved, stage, resume)
        if decision == "complete":
            return decision
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(path)
        decision = _decide(path, saved, stage, resume)  # again: a last owner may just have ended
        if decision == "fresh":
            write_text_atomic(path / CONFIG, to_yaml(stage, saved))
    except OSError as error:
        raise CheckpointError(f"output_dir: {path} cannot be written: {error.strerror}") from None
    return decision


def _decide(path: Path, saved: dict[str, Any], stage: str, resume: str) -> Decision:
    if not _compare(path, saved, stage):
        return "fresh"
    if _status(path) == "complete":
        return "complete"
    if resume == "never":
        advice = "Try resume=auto or another output_dir"
        raise ConfigError(f"resume: got never, but {path} holds an unfinished run. {advice}")
    return "continue"


def _compare(path: Path, saved: dict[str, Any], stage: str) -> bool:
    """Whether the folder holds this very run; False if it holds nothing."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"output_dir: {path} is a file; need a folder")
    if not path.exists() or all(entry.name.startswith(".") for entry in path.iterdir()):
        return False
    if not (path / CONFIG).is_file():
        text = f"output_dir: {path} holds files but no run; need a new or empty folder, or a run's"
        raise ConfigError(f"{text}. Try output_dir={path / stage}")
    before = read(path / CONFIG, str(path / CONFIG))
    if before.stage != stage:
        text = f"output_dir: {path} holds a run of {before.stage or 'another tool'}, not of {stage}"
        raise ConfigError(f"{text}. Try another output_dir")
    differences = _differences(_flat(before.values), _flat(saved))
    if differences:
        head = (
            f"output_dir: {path} holds a run with other values; use the same or another output_dir"
        )
        raise ConfigError("\n".join([head, *differences]))
    return True


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    def word(values: dict[str, Any], key: str) -> str:
        return show(values[key]) if key in values else "(not set)"

    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return [f"  {key}: {word(before, key)} -> {word(now, key)}" for key in keys]


def resolve_run(path: Path) -> Path:
    """The model folder that a path means: a finished run's result, else the path itself.

    Raises:
        ModelError: The run is not finished, or left no model.
    """
    if not (path / MANIFEST).is_file():
        return path
    status = _status(path)
    if status != "complete":
        advice = f"continue it with the same command and output_dir={path}"
        raise ModelError(f"{path} holds a run that is not finished (status: {status}); {advice}")
    if not (path / "model").is_dir():
        raise ModelError(f"{path} holds a finished run without a model folder")
    return path / "model"


def begin_manifest(path: Path, command: str, argv: list[str], resolved: dict[str, Any]) -> None:
    """Say in `manifest.json` what is about to run; a continued run keeps its earlier starts."""
    try:
        starts = list(_manifest(path).get("starts", []))
    except CheckpointError:
        starts = []
    config = {key: value for key, value in resolved.items() if key not in _NOT_SAVED}
    manifest = {
        "status": "running",
        "command": command,
        "argv": argv,
        "config_sha256": hashlib.sha256(to_yaml(command, config).encode()).hexdigest(),
        "git_commit": _git_commit(),
        "versions": _versions(),
        "starts": [*starts, _now()],
    }
    write_json_atomic(path / MANIFEST, manifest)


def finish_manifest(path: Path, status: Literal["complete", "failed"], **extra: Any) -> None:
    """Say how the run ended, with anything else worth knowing (`steps=200`)."""
    write_json_atomic(
        path / MANIFEST, {**_manifest(path), **extra, "status": status, "ended": _now()}
    )


def _manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except ValueError:
        raise CheckpointError(f"{file}: not valid JSON; remove it to run again") from None


def _status(path: Path) -> str:
    return str(_manifest(path).get("status", "unknown"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git_commit() -> str:
    """The commit of the working folder, or nothing outside of git."""
    try:
        command = ["git", "rev-parse", "HEAD"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
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


def write_json_atomic(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text_atomic(path: Path, text: str) -> None:
    """Write beside the file, flush to disk, then rename over it."""
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

"""Claim of a run folder before torch is loaded: lock it, and start, resume or refuse the run."""

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from rlhf_cli.config.recipe import read
from rlhf_cli.config.schema import flatten, runtime_only
from rlhf_cli.config.values import format_value
from rlhf_cli.config.yaml_files import escape, to_yaml
from rlhf_cli.console import logger
from rlhf_cli.errors import ConfigError
from rlhf_cli.registry import COMMANDS
from rlhf_cli.runs import inputs, lock, manifest, run_files
from rlhf_cli.runs.run_files import (
    CHECKPOINTS,
    CONFIG,
    METRICS,
    MODEL,
    write_error,
    write_text_atomic,
)

Decision = Literal["fresh", "continue", "complete"]


def allocate(stage: str, output_dir: str) -> Path:
    """Return the given folder, else create a new `runs/<stage>-<time>-<id>`.

    Raises:
        CheckpointError: the folder cannot be created.
    """
    try:
        return Path(output_dir).absolute() if output_dir else _new_folder(stage)
    except OSError as error:
        raise write_error(Path(output_dir or "runs"), error) from None


def _new_folder(stage: str) -> Path:
    runs = Path("runs").absolute()
    runs.mkdir(exist_ok=True)
    while True:
        path = runs / f"{stage}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        with contextlib.suppress(FileExistsError):  # another run of the same second has this id
            path.mkdir()
            return path


def claim(path: Path, resolved: dict[str, Any], stage: str, resume: str) -> Decision:
    """Lock a folder for a run and decide whether the run starts, continues or is complete.

    Args:
        path: the folder; created if it does not exist.
        resolved: every key of the run with its value.
        stage: the stage to run.
        resume: `auto`, `never`, or the path of a checkpoint.

    Returns:
        With `fresh` and `continue` this process owns the folder until it ends; with `complete` the
        folder is unchanged.

    Raises:
        ConfigError: the folder holds something other than this run.
        CheckpointError: another process owns the folder, or it cannot be written.
    """
    config = manifest.config_to_save(resolved)
    try:
        decision = _decide(path, config, stage, resume)
        if decision == "complete":
            return decision
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(path)
        decision = _decide(path, config, stage, resume)  # again: the last owner may just have ended
        if decision == "fresh":
            _clear(path, config)
    except OSError as error:
        raise write_error(path, error) from None
    if decision != "complete":
        write_text_atomic(path / CONFIG, to_yaml(stage, config))
    return decision


def _clear(path: Path, config: dict[str, Any]) -> None:
    """Remove what a run without a checkpoint or result left; the user's files remain.

    Raises:
        ConfigError: a file to remove is an input of this run.
    """
    doomed = run_files.list_run_files(path)
    for key, value in flatten(config).items():
        for text in _strings(value):
            if any(entry in (Path(text), *Path(text).parents) for entry in doomed):
                raise ConfigError(
                    f"{key}: got {text}, which an earlier run left in output_dir and this one "
                    "would remove. Try another output_dir"
                )
    kept = run_files.remove_run_files(path)
    if kept:
        logger.info(f"output_dir: {path} also holds {', '.join(kept)}, which stay")


def _strings(value: Any) -> Iterator[str]:
    """All strings in a config value, which may contain lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def predict_decision(path: Path, resolved: dict[str, Any], stage: str, resume: str) -> Decision:
    """Return what `claim` would decide, without locking the folder; raises the same errors."""
    try:
        return _decide(path, manifest.config_to_save(resolved), stage, resume)
    except OSError as error:
        raise write_error(path, error) from None


def _decide(path: Path, config: dict[str, Any], stage: str, resume: str) -> Decision:
    if path.exists() and not path.is_dir():
        raise ConfigError(f"output_dir: {path} is a file; need a folder")
    if not path.exists() or {*run_files.list_entries(path)} <= {*run_files.JOB_FILES}:
        return "fresh"
    status = manifest.status(path)
    has_results = bool(list_checkpoints(path)) or (path / MODEL).is_dir()
    if has_results or status in ("complete", "unknown"):
        _require_same(path, config, stage)
    if status == "complete" or has_results:
        _require_same_inputs(path, config, stage, status)
    if status == "complete":
        return "complete"
    if not has_results:
        if status == "unknown":
            _require_no_run_names(path)
        return "fresh"
    if resume == "never":
        advice = "Try resume=auto or another output_dir"
        raise ConfigError(f"resume: got never, but {path} holds an unfinished run. {advice}")
    return "continue"


def discard(path: Path) -> None:
    """Remove the files of a run that failed on its input before it trained or evaluated anything.

    `metrics.jsonl` exists from the first evaluation or step on, even if no step was logged.
    """
    measured = (path / METRICS).exists() or (path / MODEL).exists() or list_checkpoints(path)
    if not measured and not lock.is_lost(path):
        with contextlib.suppress(OSError):  # the error that ended the run is reported instead
            run_files.remove_run_files(path)


def list_checkpoints(path: Path) -> list[Path]:
    """List the complete checkpoints of a run folder, oldest first."""
    found = (path / CHECKPOINTS).glob("step-*")
    numbered = {entry: entry.name.removeprefix("step-") for entry in found}
    complete = [entry for entry, number in numbered.items() if number.isdigit()]
    return sorted(complete, key=lambda entry: int(numbered[entry]))


def _require_same(path: Path, config: dict[str, Any], stage: str) -> None:
    """Refuse a folder that holds something other than this run."""
    if not (path / CONFIG).is_file():
        text = f"output_dir: {path} holds files but no run; need a new or empty folder, or a run's"
        raise ConfigError(f"{text}. Try output_dir={path / stage}")
    before = read(path / CONFIG, str(path / CONFIG))
    if before.stage != stage:
        text = f"output_dir: {path} holds a run of {before.stage or 'another tool'}, not of {stage}"
        raise ConfigError(f"{text}. Try another output_dir")
    differences = _differences(flatten(before.values), flatten(escape(config)), stage)
    if differences:
        head = (
            f"output_dir: {path} holds a run with other values; use the same or another output_dir"
        )
        raise ConfigError("\n".join([head, *differences]))


def _require_same_inputs(path: Path, config: dict[str, Any], stage: str, status: str) -> None:
    """Refuse a run whose input files have changed since it was recorded."""
    changes = inputs.find_changes(
        manifest.read(path).get("inputs", {}), config, COMMANDS[stage].config
    )
    if changes:
        kind = "a finished" if status == "complete" else "an unfinished"
        head = f"output_dir: {path} holds {kind} run, and files that it read have changed since"
        advice = "For a new run on them, try another output_dir; or remove that folder"
        raise ConfigError("\n".join([head, *changes, advice]))


def _require_no_run_names(path: Path) -> None:
    """Refuse a folder without a manifest in which the run would replace the user's files."""
    taken = [entry.name for entry in run_files.list_run_files(path) if entry.name != CONFIG]
    if taken:
        raise ConfigError(
            f"output_dir: {path} holds {', '.join(taken)} but no run; need a new or empty folder, "
            "or a run's. Try another output_dir"
        )


def _differences(before: dict[str, Any], now: dict[str, Any], stage: str) -> list[str]:
    """List the keys that change the result and have another value, one line each.

    A key that did not exist when the run started counts as its present default.
    """

    def shown(values: dict[str, Any], key: str) -> str:
        return format_value(values[key]) if key in values else "(not set)"

    config = COMMANDS[stage].config
    free = runtime_only(config)
    then = {**flatten(asdict(config())), **before}
    keys = [key for key in {**before, **now} if then.get(key) != now.get(key)]
    return [
        f"  {key}: {shown(before, key)} -> {shown(now, key)}" for key in keys if key not in free
    ]

"""A run's folder before torch is loaded: who owns it, what it holds, and whether to go on."""

import contextlib
import secrets
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from rlhf_cli.config.recipe import read
from rlhf_cli.config.schema import flatten, runtime_only
from rlhf_cli.config.values import format_value
from rlhf_cli.config.yaml_files import escape, to_yaml
from rlhf_cli.errors import ConfigError
from rlhf_cli.registry import COMMANDS
from rlhf_cli.runs import contents, inputs, lock, manifest
from rlhf_cli.runs.contents import CHECKPOINTS, CONFIG, METRICS, MODEL
from rlhf_cli.runs.files import unwritable, write_text_atomic

Decision = Literal["fresh", "continue", "complete"]


def allocate(stage: str, output_dir: str) -> Path:
    """The folder of a run: the one given, else a new `runs/<stage>-<time>-<id>`.

    Raises:
        CheckpointError: It cannot be made here.
    """
    try:
        return Path(output_dir).absolute() if output_dir else _new_folder(stage)
    except OSError as error:
        raise unwritable(Path(output_dir or "runs"), error) from None


def _new_folder(stage: str) -> Path:
    runs = Path("runs").absolute()
    runs.mkdir(exist_ok=True)
    while True:
        path = runs / f"{stage}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        with contextlib.suppress(FileExistsError):  # another run of this second drew the same id
            path.mkdir()
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
    config = manifest.saved(resolved)
    try:
        decision = _decide(path, config, stage, resume)
        if decision == "complete":
            return decision
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(path)
        decision = _decide(path, config, stage, resume)  # again: a last owner may just have ended
        if decision == "fresh":
            _clear(path, config)
    except OSError as error:
        raise unwritable(path, error) from None
    if decision != "complete":
        write_text_atomic(path / CONFIG, to_yaml(stage, config))
    return decision


def _clear(path: Path, config: dict[str, Any]) -> None:
    """Remove what a run without a checkpoint or result left; files of the user's stay.

    Raises:
        ConfigError: One of the files to remove is an input of this run.
    """
    doomed = contents.written_by_run(path)
    for key, value in flatten(config).items():
        for text in _texts(value):
            if any(entry in (Path(text), *Path(text).parents) for entry in doomed):
                raise ConfigError(
                    f"{key}: got {text}, which an earlier run left in output_dir and this one "
                    "would remove. Try another output_dir"
                )
    kept = contents.remove(path)
    if kept:
        print(f"output_dir: {path} also holds {', '.join(kept)}, which stay", file=sys.stderr)


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value of a configuration, which may hold lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def foresee(path: Path, resolved: dict[str, Any], stage: str, resume: str) -> Decision:
    """What `claim` would say, without taking the folder; raises the same."""
    try:
        return _decide(path, manifest.saved(resolved), stage, resume)
    except OSError as error:
        raise unwritable(path, error) from None


def _decide(path: Path, config: dict[str, Any], stage: str, resume: str) -> Decision:
    if path.exists() and not path.is_dir():
        raise ConfigError(f"output_dir: {path} is a file; need a folder")
    if not path.exists() or all(entry.name.startswith(".") for entry in path.iterdir()):
        return "fresh"
    status = manifest.status(path)
    to_lose = bool(checkpoints(path)) or (path / MODEL).is_dir()
    if to_lose or status in ("complete", "unknown"):
        _require_same(path, config, stage)
    if status == "complete" or to_lose:
        _require_same_inputs(path, config, stage, status)
    if status == "complete":
        return "complete"
    if not to_lose:
        if status == "unknown":
            _require_no_run_names(path)
        return "fresh"
    if resume == "never":
        advice = "Try resume=auto or another output_dir"
        raise ConfigError(f"resume: got never, but {path} holds an unfinished run. {advice}")
    return "continue"


def discard(path: Path) -> None:
    """Remove what a run wrote that failed on its input before it measured or trained anything.

    `metrics.jsonl` is there from the first evaluation or step on, also where no step was logged.
    """
    measured = (path / METRICS).exists() or (path / MODEL).exists() or checkpoints(path)
    if not measured and not lock.is_lost(path):
        with contextlib.suppress(OSError):  # the error that ended the run matters more
            contents.remove(path)


def checkpoints(path: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    found = (path / CHECKPOINTS).glob("step-*")
    numbered = {entry: entry.name.removeprefix("step-") for entry in found}
    complete = [entry for entry, number in numbered.items() if number.isdigit()]
    return sorted(complete, key=lambda entry: int(numbered[entry]))


def _require_same(path: Path, config: dict[str, Any], stage: str) -> None:
    """Refuse a folder that holds something else than this very run."""
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
    """Refuse to take a run for this one where the files that it read have changed."""
    changes = inputs.changes(manifest.read(path).get("inputs", {}), config, COMMANDS[stage].config)
    if changes:
        kind = "a finished" if status == "complete" else "an unfinished"
        head = f"output_dir: {path} holds {kind} run, and files that it read have changed since"
        advice = "For a new run on them, try another output_dir; or remove that folder"
        raise ConfigError("\n".join([head, *changes, advice]))


def _require_no_run_names(path: Path) -> None:
    """Refuse a folder without a manifest where a run would replace files that may be the user's."""
    taken = [entry.name for entry in contents.written_by_run(path) if entry.name != CONFIG]
    if taken:
        raise ConfigError(
            f"output_dir: {path} holds {', '.join(taken)} but no run; need a new or empty folder, "
            "or a run's. Try another output_dir"
        )


def _differences(before: dict[str, Any], now: dict[str, Any], stage: str) -> list[str]:
    """A line for every key that changes the result and has another value.

    A key that was added since the run was begun had what is its default now.
    """

    def word(values: dict[str, Any], key: str) -> str:
        return format_value(values[key]) if key in values else "(not set)"

    config = COMMANDS[stage].config
    free = runtime_only(config)
    then = {**flatten(asdict(config())), **before}
    keys = [key for key in {**before, **now} if then.get(key) != now.get(key)]
    return [f"  {key}: {word(before, key)} -> {word(now, key)}" for key in keys if key not in free]

"""Record of a run, read from its folder, whatever state the folder is in.

Runs that still go on, that crashed, and those of transformers' `Trainer` (TRL's too) are read as
far as possible; what could not be read is listed.
"""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rlhf_cli.config.recipe import read
from rlhf_cli.config.schema import flatten
from rlhf_cli.errors import CheckpointError, ConfigError, DataError
from rlhf_cli.runs import foreign, lock, manifest, run_files

Status = Literal["complete", "running", "interrupted", "failed", "unknown"]

EVAL = "eval/"
"""Prefix of the metrics of held-out rows."""

LOG_TAIL_BYTES = 64 * 1024
_MODEL_FILES = ("config.json", "adapter_config.json")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What the folder of a run says.

    Attributes:
        folder: of the run.
        tool: `rlhf`, or `transformers` for a folder of its `Trainer` or of TRL.
        stage: command, as in `dpo`; empty where it is not known.
        status: `running` only while the process that owns the folder is alive; a run that was
            killed is `interrupted`.
        error: what ended a run that failed or was interrupted; empty where it is not known.
        manifest: of the run; empty without one.
        config: nested configuration, without defaults that the run did not know; empty without one.
        metrics: lines of metrics, oldest first: `step` and numbers by name, those of held-out rows
            under `eval/`. Values that are not finite are kept.
        samples: lines of `samples.jsonl`.
        fixed_samples: lines of `fixed_samples.jsonl`: responses to the same prompts through time.
        spikes: lines of `spikes.jsonl`: steps of unusual loss with their rows.
        log: last lines of `log.txt`.
        problems: what could not be read, one line each.
    """

    folder: Path
    tool: str = "rlhf"
    stage: str = ""
    status: Status = "unknown"
    error: str = ""
    manifest: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, float]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    fixed_samples: list[dict[str, Any]] = field(default_factory=list)
    spikes: list[dict[str, Any]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _series: dict[str, list[tuple[int, float]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @cached_property
    def training(self) -> list[dict[str, float]]:
        """Lines with metrics of training steps, without those of held-out rows."""
        held_out = {name for name in self.names if name.startswith(EVAL)}
        kept = [
            line
            if held_out.isdisjoint(line)
            else {name: value for name, value in line.items() if name not in held_out}
            for line in self.metrics
        ]
        return [line for line in kept if len(line) > 1]

    @cached_property
    def evaluations(self) -> list[dict[str, float]]:
        """Lines with metrics of held-out rows: `step`, and names without `eval/`."""
        kept = [
            {
                name.removeprefix(EVAL): value
                for name, value in line.items()
                if name == "step" or name.startswith(EVAL)
            }
            for line in self.metrics
        ]
        return [line for line in kept if len(line) > 1]

    @cached_property
    def names(self) -> list[str]:
        """Names of all metrics, in the order in which they first appear."""
        seen: dict[str, None] = {}
        for line in self.metrics:
            seen.update(dict.fromkeys(line))
        return list(seen)

    @property
    def options(self) -> dict[str, Any]:
        """Configuration by dotted key."""
        return flatten(self.config)

    def series(self, name: str) -> list[tuple[int, float]]:
        """Steps and finite values of a metric, `eval/` included in its name."""
        if name not in self._series:
            self._series[name] = [
                (int(line["step"]), line[name])
                for line in self.metrics
                if name in line and math.isfinite(line[name])
            ]
        return self._series[name]


def read_record(folder: str | Path) -> RunRecord:
    """Read the folder of a run.

    Args:
        folder: of a run in any state, the model folder in one, or a folder of transformers.

    Raises:
        DataError: there is no such folder, it cannot be read, or it holds no run.
    """
    path = Path(folder).expanduser()
    _require_folder(path)
    path = _run_folder(path)
    if (path / run_files.MANIFEST).is_file() or (path / run_files.METRICS).is_file():
        return _read_own(path)
    state = foreign.find_state(path)
    if state is not None:
        return _read_foreign(path, state)
    if (path / run_files.CONFIG).is_file():
        return _read_own(path)
    raise DataError(_refusal(path))


def _require_folder(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path}: no such folder; need the folder of a run, as in runs/sft")
    if not path.is_dir():
        advice = f". Try {path.parent}" if path.name in _NAMES else ""
        raise DataError(f"{path}: is no folder; need the folder of a run{advice}")
    if not os.access(path, os.R_OK | os.X_OK):
        raise DataError(f"{path}: cannot be read (permission denied)")


_NAMES = {*run_files.FILES, run_files.MANIFEST}


def _run_folder(path: Path) -> Path:
    """The run that a folder belongs to: of its model or of a checkpoint; else the folder itself."""
    resolved = path.resolve()
    inside = resolved.name == run_files.MODEL
    above = resolved.parents[0 if inside else 1] if len(resolved.parents) > 1 else resolved
    if (inside or resolved.parent.name == run_files.CHECKPOINTS) and (
        above / run_files.MANIFEST
    ).is_file():
        return above
    return path


def _refusal(path: Path) -> str:
    if any((path / name).is_file() for name in _MODEL_FILES):
        return (
            f"{path}: holds a model and no record of its training ({run_files.METRICS} or "
            f"{foreign.STATE}); need the folder of a run"
        )
    inside = sorted(
        entry.name
        for entry in path.iterdir()
        if (entry / run_files.MANIFEST).is_file() or (entry / foreign.STATE).is_file()
    )
    if inside:
        return f"{path}: holds {len(inside)} runs; need one of them. Try {path / inside[0]}"
    return f"{path}: holds no run ({run_files.MANIFEST} or {foreign.STATE}); need a run's folder"


def _read_own(path: Path) -> RunRecord:
    problems: list[str] = []
    found = _read_manifest(path, problems)
    stage, config = _read_config(path, problems)
    status, error = _read_status(path, found)
    lines = _read_json_lines(path / run_files.METRICS, problems)
    return RunRecord(
        folder=path,
        stage=stage or str(found.get("command", "")),
        status=status,
        error=error,
        manifest=found,
        config=config,
        metrics=_numbers(lines, run_files.METRICS, problems),
        samples=_read_json_lines(path / run_files.SAMPLES, problems),
        fixed_samples=_read_json_lines(path / run_files.FIXED_SAMPLES, problems),
        spikes=_read_json_lines(path / run_files.SPIKES, problems),
        log=_read_tail(path / run_files.LOG),
        problems=problems,
    )


def _read_manifest(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        return manifest.read(path)
    except (CheckpointError, UnicodeError):
        problems.append(f"{run_files.MANIFEST}: cannot be read")
        return {}


def _read_config(path: Path, problems: list[str]) -> tuple[str, dict[str, Any]]:
    """The stage and the nested configuration; both empty where there is none."""
    file = path / run_files.CONFIG
    if not file.is_file():
        problems.append(f"{run_files.CONFIG}: is not there; keys count as unknown")
        return "", {}
    try:
        found = read(file, str(file))
    except (ConfigError, OSError, UnicodeError):
        problems.append(f"{run_files.CONFIG}: cannot be read; keys count as unknown")
        return "", {}
    return found.stage, found.values


def _read_status(path: Path, found: dict[str, Any]) -> tuple[Status, str]:
    """The status, and the error that ended the run."""
    status, error = found.get("status"), str(found.get("error", ""))
    if status == "running" and lock.is_held(path):
        return "running", ""
    if status == "running":
        return "interrupted", "the process ended without a message, as after SIGKILL or a crash"
    if status == "complete":
        return "complete", ""
    if status == "failed":
        return "failed", error
    return ("interrupted", error) if status == "interrupted" else ("unknown", error)


def _read_json_lines(file: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The objects of a `.jsonl` file; other lines are counted, except a last one cut short."""
    if not file.is_file():
        return []
    found: list[dict[str, Any]] = []
    broken = 0
    for text in _read_text_lines(file, problems):
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if isinstance(value, dict):
            found.append(value)
        elif text.endswith("\n") and text.strip():
            broken += 1
    if broken:
        problems.append(
            f"{file.name}: {broken} {'line' if broken == 1 else 'lines'} skipped, not "
            "one JSON object each"
        )
    return found


def _read_text_lines(file: Path, problems: list[str]) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8", errors="replace", newline="\n") as stream:
            yield from stream
    except OSError as error:
        problems.append(f"{file.name}: cannot be read ({error.strerror})")


def _numbers(lines: list[dict[str, Any]], name: str, problems: list[str]) -> list[dict[str, float]]:
    """The numbers of lines that have a step; counts what is not finite."""
    kept = [
        {key: value for key, value in line.items() if _is_number(value)}
        for line in lines
        if _is_number(line.get("step")) and math.isfinite(line["step"])
    ]
    if len(kept) < len(lines):
        problems.append(f"{name}: {len(lines) - len(kept)} lines skipped, which have no step")
    odd = sum(not math.isfinite(value) for line in kept for value in line.values())
    if odd:
        problems.append(f"{name}: {odd} {'value is' if odd == 1 else 'values are'} not finite")
    return kept


def _is_number(value: Any) -> bool:
    """Whether a value of JSON is a number that fits a float."""
    return type(value) is float or (type(value) is int and abs(value) < 2**1000)


def _read_tail(file: Path) -> list[str]:
    """The last lines of a file; empty if it cannot be read."""
    if not file.is_file():
        return []
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - LOG_TAIL_BYTES))
            lines = stream.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return []
    return lines[1:] if size > LOG_TAIL_BYTES else lines


def _read_foreign(path: Path, file: Path) -> RunRecord:
    problems: list[str] = []
    try:
        state = run_files.read_json(file)
    except (OSError, ValueError):
        raise DataError(f"{file}: cannot be read as JSON") from None
    lines = [foreign.rename(line) for line in foreign.history(state)]
    metrics = _numbers(lines, file.name, problems)
    complete = _all_steps_done(state.get("global_step"), state.get("max_steps"))
    return RunRecord(
        folder=path,
        tool="transformers",
        stage=foreign.guess_stage({name for line in metrics for name in line}),
        status="complete" if complete else "unknown",
        config=foreign.options(state),
        metrics=metrics,
        log=_read_tail(path / run_files.LOG),
        problems=problems,
    )


def _all_steps_done(done: Any, planned: Any) -> bool:
    return _is_number(done) and _is_number(planned) and bool(done >= planned > 0)

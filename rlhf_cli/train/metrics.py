"""Metrics: summed over steps and ranks, written to metrics.jsonl, shown, sent to trackers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from torch import Tensor

from rlhf_cli.console import logger
from rlhf_cli.distributed.ranks import SINGLE_PROCESS, Ranks
from rlhf_cli.errors import CheckpointError, RlhfError, first_line
from rlhf_cli.progress import StatusLine, format_duration
from rlhf_cli.runs import lock, log, run_files
from rlhf_cli.runs.run_files import read_json_lines, read_lines, write_text_atomic


class Meter:
    """Sums and counts of metrics between two logged lines, kept on the device until read."""

    def __init__(self, ranks: Ranks = SINGLE_PROCESS) -> None:
        self.ranks = ranks
        self.sums: dict[str, tuple[Tensor | float, Tensor | float]] = {}

    def add(self, metrics: Mapping[str, tuple[Tensor, Tensor | float]]) -> None:
        """Add the sums and counts of one step."""
        for name, (total, count) in metrics.items():
            old_total, old_count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (old_total + total.double(), old_count + count)

    def read(self) -> dict[str, float]:
        """Means over all ranks since the last call; resets the sums."""
        merged: dict[str, tuple[float, float]] = {}
        for own in self.ranks.all_gather_json(self.state_dict()):
            for name, (total, count) in own.items():
                old_total, old_count = merged.get(name, (0.0, 0.0))
                merged[name] = (old_total + total, old_count + count)
        self.sums = {}
        return {name: total / count for name, (total, count) in merged.items() if count}

    def state_dict(self) -> dict[str, list[float]]:
        """This rank's sums as JSON values."""
        flat = _numbers([value for pair in self.sums.values() for value in pair])
        return {name: flat[2 * k : 2 * k + 2] for k, name in enumerate(self.sums)}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Continue from `state_dict`."""
        self.sums = {
            name: (torch.tensor(total, dtype=torch.float64), count)
            for name, (total, count) in state.items()
        }


def _numbers(values: Sequence[Tensor | float]) -> list[float]:
    """Convert numbers and scalar tensors to floats; tensors on a GPU in one transfer."""
    there = [value.double() for value in values if isinstance(value, Tensor) and value.is_cuda]
    read = iter(torch.stack(there).tolist() if there else [])
    return [
        next(read) if isinstance(value, Tensor) and value.is_cuda else float(value)
        for value in values
    ]


class MetricsFile:
    """`metrics.jsonl`: one flat JSON object per logged step, written by rank 0."""

    def __init__(self, path: Path, ranks: Ranks = SINGLE_PROCESS) -> None:
        self.path = path
        self.written = ranks.is_main
        self.lines = 0

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one line.

        Raises:
            CheckpointError: the disk is full, the folder read-only or taken over.
        """
        if self.written:
            self._append(json.dumps({"step": step, **values}) + "\n")
            self.lines += 1

    def touch(self) -> None:
        """Create the file if it does not exist: it shows that a step was taken, logged or not.

        Raises:
            CheckpointError: as `write`.
        """
        if self.written and not self.path.exists():
            self._append("")

    def _append(self, text: str) -> None:
        lock.require_owned(self.path.parent)
        try:
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(text)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be written ({error.strerror})") from error

    def cut(self, lines: int) -> None:
        """Keep only the first lines, as they were when a checkpoint was written."""
        if self.written and self.path.exists():
            kept = read_lines(self.path)[:lines]
            write_text_atomic(self.path, "".join(f"{line}\n" for line in kept))
        self.lines = lines


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read all lines of a `metrics.jsonl`, oldest first."""
    return read_json_lines(path)


HEADLINES = {
    "objective/scores": "score",
    "objective/kl": "kl",
    "rewards/accuracies": "accuracy",
    "accuracy": "accuracy",
    "delta": "delta",
}
"""Metrics that matter for a stage -> their labels in the progress line, which shows two."""


class ProgressLine:
    """Progress line with step, loss or score, speed and time left; a terminal shows one line."""

    QUIET_SECONDS = 10.0

    def __init__(self, total: int, done: int) -> None:
        self.total = total
        self.first = done
        self.began = time.monotonic()
        self.shown = 0.0
        self.line = StatusLine()

    def show(self, step: int, values: dict[str, float]) -> None:
        """Show the values after `step` steps."""
        now = time.monotonic()
        quiet = now - self.shown < self.QUIET_SECONDS
        if quiet and step < self.total and not self.line.live:
            return
        self.shown = now
        left = (now - self.began) / max(1, step - self.first) * (self.total - step)
        self.line.show(
            f"step {step}/{self.total}  {_headline(values)}  left {format_duration(left)}  "
            f"{values['tokens_per_second']:,.0f} tokens/s  lr {values['lr']:.2e}  "
            f"{values['peak_fraction']:.0%} of peak  {values['memory_bytes'] / 1e9:.1f} GB"
        )

    def close(self) -> None:
        """End the line, so that the next output starts below it."""
        self.line.end()


def _headline(values: Mapping[str, float]) -> str:
    """Score and KL of PPO, else the loss and the metric that matters for the stage."""
    found = {label: values[name] for name, label in HEADLINES.items() if name in values}
    shown = found if "score" in found else {"loss": values["loss"], **found}
    return "  ".join(f"{label} {value:.4f}" for label, value in shown.items())


class Trackers:
    """Experiment trackers of a run, beside `metrics.jsonl`.

    Args:
        names: Accelerate's names of the trackers.
        out: the run folder, below which trackers write files.
        settings: the configuration, which trackers store with the run.

    Raises:
        RlhfError: a tracker cannot be started.
    """

    def __init__(self, names: Sequence[str], out: Path, settings: Mapping[str, Any]) -> None:
        self._open: dict[str, GeneralTracker] = {}
        if names:
            PartialState(cpu=True)  # trackers ask it for the main process
        for name in names:
            try:
                self._open[name] = _start(name, out, settings)
            except Exception as error:
                raise RlhfError(
                    f"log.trackers: {name} cannot be started ({first_line(error)}). "
                    "Check its account and connection, or leave it out"
                ) from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the metrics of a step; a tracker that fails is reported once and then left out."""
        for name, tracker in list(self._open.items()):
            try:
                tracker.log(dict(values), step=step)
            except Exception as error:
                logger.info(
                    f"log.trackers: {name} failed ({first_line(error)}); training goes on without"
                )
                del self._open[name]

    def close(self) -> None:
        """Let each tracker send what it has buffered."""
        for tracker in self._open.values():
            tracker.finish()
        self._open = {}


PROJECT = "rlhf"
"""Project of trackers that group runs, unless `WANDB_PROJECT` or `TRACKIO_PROJECT` name another."""


def _start(name: str, out: Path, settings: Mapping[str, Any]) -> GeneralTracker:
    kind = LOGGER_TYPE_TO_CLASS[name]
    folder = out / run_files.TRACKERS
    if kind.requires_logging_directory:
        tracker = kind(name, logging_dir=str(folder))
    elif name in ("wandb", "trackio"):
        project = os.environ.get(f"{name.upper()}_PROJECT") or PROJECT
        tracker = kind(project, name=out.name, **_local_files(name, folder))
    else:
        tracker = kind(out.name)
    tracker.start()
    tracker.store_init_configuration(dict(_flat(log.hide_secrets(dict(settings)))))
    return tracker


def _local_files(name: str, folder: Path) -> dict[str, str]:
    """Place of the files of wandb: in the run folder, unless `WANDB_DIR` names another."""
    if name != "wandb" or "WANDB_DIR" in os.environ:
        return {}
    folder.mkdir(exist_ok=True)
    return {"dir": str(folder)}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str | float]]:
    """Flatten to dotted keys with numbers, booleans and text, which every tracker accepts."""
    found: list[tuple[str, str | float]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key}.")
        else:
            plain = isinstance(value, bool | int | float | str)
            found.append((prefix + key, value if plain else str(value)))
    return found


def with_prefix(prefix: str, values: dict[str, float]) -> dict[str, float]:
    """The values with a prefix added to their names."""
    return {f"{prefix}{name}": value for name, value in values.items()}

"""Metrics: merged as sums and counts, written as flat JSON lines, shown as one line."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.distributed import ALONE, Ranks
from rlhf_cli.errors import CheckpointError
from rlhf_cli.progress import StatusLine, format_duration
from rlhf_cli.runs import lock
from rlhf_cli.runs.files import read_json_lines, read_lines, write_text_atomic


class Meter:
    """Running sums of metrics between two log lines; on the device and of one rank until read."""

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.sums: dict[str, tuple[Tensor | float, Tensor | float]] = {}

    def add(self, metrics: Mapping[str, tuple[Tensor, Tensor | float]]) -> None:
        """Take in the sums and counts of one step."""
        for name, (total, count) in metrics.items():
            old_total, old_count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (old_total + total.double(), old_count + count)

    def read(self) -> dict[str, float]:
        """The means over all ranks since the last reading; starts anew."""
        merged: dict[str, tuple[float, float]] = {}
        for own in self.ranks.gather(self.state_dict()):
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
    """Numbers and scalar tensors as numbers; the host waits once for what is on a GPU."""
    there = [value.double() for value in values if isinstance(value, Tensor) and value.is_cuda]
    read = iter(torch.stack(there).tolist() if there else [])
    return [
        next(read) if isinstance(value, Tensor) and value.is_cuda else float(value)
        for value in values
    ]


class MetricsFile:
    """`metrics.jsonl`: one flat object a logged step; only rank 0 writes it."""

    def __init__(self, path: Path, ranks: Ranks = ALONE) -> None:
        self.path = path
        self.written = ranks.main
        self.lines = 0

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one line.

        Raises:
            CheckpointError: the disk is full, the folder read-only or taken over.
        """
        if self.written:
            self._append(json.dumps({"step": step, **values}) + "\n")
            self.lines += 1

    def make(self) -> None:
        """Make the file if it is not there: it shows that a step was taken, logged or not.

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
        """Keep the first lines: those that stood when a checkpoint was written."""
        if self.written and self.path.exists():
            kept = read_lines(self.path)[:lines]
            write_text_atomic(self.path, "".join(f"{line}\n" for line in kept))
        self.lines = lines


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a `metrics.jsonl`, oldest first."""
    return read_json_lines(path)


HEADLINES = {"objective/scores": "score", "objective/kl": "kl"}
"""Metrics of a rollout, and how they are called where its loss, which says little, would stand."""


class ProgressLine:
    """One line with step, loss or score, speed and time left: on a terminal always the same one."""

    QUIET_SECONDS = 10.0

    def __init__(self, total: int, done: int) -> None:
        self.total = total
        self.first = done
        self.began = time.monotonic()
        self.shown = 0.0
        self.line = StatusLine()

    def show(self, step: int, values: dict[str, float]) -> None:
        """Show the state after `step` steps."""
        now = time.monotonic()
        quiet = now - self.shown < self.QUIET_SECONDS
        if quiet and step < self.total and not self.line.live:
            return
        self.shown = now
        left = (now - self.began) / max(1, step - self.first) * (self.total - step)
        self.line.show(
            f"step {step}/{self.total}  {_headline(values)}  lr {values['lr']:.2e}  "
            f"{values['tokens_per_second']:,.0f} tokens/s  {values['peak_fraction']:.0%} of peak  "
            f"{values['memory_bytes'] / 1e9:.1f} GB  left {format_duration(left)}"
        )

    def close(self) -> None:
        """Leave the line standing; what is printed next begins below it."""
        self.line.end()


def _headline(values: Mapping[str, float]) -> str:
    """Score and KL of a rollout, else the loss."""
    found = {label: values[name] for name, label in HEADLINES.items() if name in values}
    shown = found or {"loss": values["loss"]}
    return "  ".join(f"{label} {value:.4f}" for label, value in shown.items())

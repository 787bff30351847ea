"""Summary of a run from its folder: what changed, where the result is, and the next command."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_cli.console import print_box
from rlhf_cli.runs.record import RunRecord
from rlhf_cli.runs.run_files import MODEL, REPORT
from rlhf_cli.sweep.config import training_metric

MAIN_METRICS = (
    "score",
    "kl",
    "loss",
    "perplexity",
    "accuracy",
    "rewards/accuracies",
    "rewards/margins",
    "rewards/chosen",
    "rewards/rejected",
    "auc",
    "response_length",
)
"""Held-out metrics that the summary shows, the most important first."""

SHOWN = 4
"""Metrics of a summary at most."""

NEXT = {
    "pretrain": "rlhf sft model={run} data=FILE",
    "sft": "rlhf dpo model={run} data=FILE",
    "reward": "rlhf score {run} data=FILE",
}
"""Stage -> the command that usually follows; after other stages, a conversation."""

CHAT = "rlhf chat {run}"


@dataclass(frozen=True)
class Change:
    """A metric before the first and after the last step, each with its 95 % interval if known.

    Attributes:
        metric: name.
        before: value, or None.
        after: value, or None.
        before_interval: lower and upper bound, or None.
        after_interval: lower and upper bound, or None.
    """

    metric: str
    before: float | None
    after: float | None
    before_interval: list[float] | None = None
    after_interval: list[float] | None = None

    def __str__(self) -> str:
        noise = ROUNDING * max(abs(self.before or 0.0), abs(self.after or 0.0), 1e-4)
        before = _with_interval(self.before, self.before_interval, noise)
        return f"{before} → {_with_interval(self.after, self.after_interval, noise)}"


ROUNDING = 1e-5
"""Values below this share of the larger one are rounding errors around 0."""


def _with_interval(value: float | None, interval: list[float] | None, noise: float) -> str:
    if value is None:
        return "?"
    shown = [
        f"{number if abs(number) > noise else 0.0:.4g}" for number in (value, *(interval or ()))
    ]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]" if interval else shown[0]


@dataclass(frozen=True)
class RunSummary:
    """What a finished run did.

    Attributes:
        stage: the command.
        status: complete, interrupted or failed.
        output_dir: the run folder.
        model: folder of the result; empty if there is none.
        report: path of `report.html`; empty if there is none.
        steps: taken.
        seconds: in the training loop.
        peak_memory_bytes: of all processes.
        held_out: whether the changes are those of held-out rows, else of the training rows.
        changes: of the main metrics.
        next: the command that usually follows.
    """

    stage: str
    status: str
    output_dir: str
    model: str
    report: str
    steps: int
    seconds: float
    peak_memory_bytes: int
    held_out: bool
    changes: list[Change]
    next: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values, for `--json`."""
        return asdict(self)

    def show(self) -> None:
        """Print the summary of a run that took a step on stderr."""
        if not self.steps:
            return
        rows = [(change.metric, str(change)) for change in self.changes]
        rows += [("result", self.model), ("report", self.report), ("next", self.next)]
        rows = [(name, value) for name, value in rows if value]
        where = "held-out rows" if self.held_out else "training rows"
        steps = f"{self.steps} step{'' if self.steps == 1 else 's'}"
        print_box(f"{self.stage}: {steps}, {where} before → after", rows)


def summarize(record: RunRecord) -> RunSummary:
    """Summarize a run from its record."""
    known = record.manifest
    before, after = known.get("before") or {}, known.get("after") or {}
    shown = _relative(record.folder)
    changes = _changes(before, after, known.get("intervals") or {})
    return RunSummary(
        stage=record.stage,
        status=record.status,
        output_dir=shown,
        model=_inside(record.folder, MODEL),
        report=_inside(record.folder, REPORT),
        steps=int(known.get("steps") or (record.metrics[-1]["step"] if record.metrics else 0)),
        seconds=float(known.get("seconds", 0)),
        peak_memory_bytes=int(known.get("peak_memory_bytes", 0)),
        held_out=bool(changes),
        changes=changes or _training_changes(record.training),
        next=NEXT.get(record.stage, CHAT).format(run=shlex.quote(shown)),
    )


def _changes(
    before: dict[str, float], after: dict[str, float], intervals: dict[str, Any]
) -> list[Change]:
    names = [name for name in MAIN_METRICS if name in after][:SHOWN]
    first, last = intervals.get("before") or {}, intervals.get("after") or {}
    return [
        Change(name, before.get(name), after[name], first.get(name), last.get(name))
        for name in names
    ]


def _training_changes(lines: list[dict[str, float]]) -> list[Change]:
    """Of a run without held-out rows: values of the first and last logged step."""
    if not lines:
        return []
    first, last = lines[0], lines[-1]
    names = [training_metric(f"eval/{name}") for name in MAIN_METRICS]
    shown = [name for name in names if name in last][:SHOWN]
    return [Change(name, first.get(name), last[name]) for name in shown]


def _inside(folder: Path, name: str) -> str:
    """Path of something in a run folder as it is shown; empty if it is not there."""
    return f"{_relative(folder)}/{name}" if (folder / name).exists() else ""


def _relative(folder: Path) -> str:
    """The folder relative to the working folder, where that is shorter."""
    return min(str(folder), os.path.relpath(folder), key=len)

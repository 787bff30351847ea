"""The runs of a sweep side by side, the best first."""

import math
from collections.abc import Sequence
from typing import Any

from rlhf_cli.sweep.config import Objective, training_metric

RANK, VALUE = "rank", "value"
"""Columns of a row: 1 is the best, and the number that decides; empty where a run has none."""

_BESIDE = ("eval/kl", "eval/loss")
"""Metrics that are shown beside the one that decides, where the runs have them."""


def with_ranks(rows: list[dict[str, Any]], objective: Objective) -> list[dict[str, Any]]:
    """The same rows, each with its rank first behind the number of the job."""
    ranks = {row["job"]: place for place, row in enumerate(ranked(rows, objective), start=1)}
    return [
        {"job": row["job"], RANK: "" if row[VALUE] == "" else ranks[row["job"]]} | row
        for row in rows
    ]


def ranked(rows: Sequence[dict[str, Any]], objective: Objective) -> list[dict[str, Any]]:
    """The rows from the best to the worst, those without a value last.

    Of equal values the one at less KL comes first, then the earlier job.
    """
    return sorted(rows, key=lambda row: (_cost(row, objective), row.get("eval/kl", 0.0)))


def _cost(row: dict[str, Any], objective: Objective) -> float:
    """What is to be minimized; infinity where the run has no such value."""
    return math.inf if row[VALUE] == "" else objective.cost(float(row[VALUE]))


def as_text(rows: Sequence[dict[str, Any]], settings: Sequence[str], objective: Objective) -> str:
    """A line for each run, the best first.

    Args:
        rows: with ranks.
        settings: the keys that differ between the runs.
        objective: what they are compared by.
    """
    beside = [name for name in _BESIDE if any(name in row for row in rows)]
    beside = [name for name in beside if name != objective.metric]
    columns = [RANK, "job", *settings, "status", VALUE, *beside]
    head = [shown_metric(rows, objective) if name == VALUE else name for name in columns]
    body = [[_cell(row.get(name, "")) for name in columns] for row in ranked(rows, objective)]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, *body)
    )


def shown_metric(rows: Sequence[dict[str, Any]], objective: Objective) -> str:
    """The name of the metric; without held-out rows it is one of training."""
    held_out = any(name.startswith("eval/") for row in rows for name in row)
    name = objective.metric
    if held_out or not name.startswith("eval/"):
        return name
    return f"{training_metric(name)} (training)"


def _cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)

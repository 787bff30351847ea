"""Evaluation results as a text table and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlhf_cli.evaluation.intervals import Estimate


@dataclass(frozen=True)
class Result:
    """Estimate of one metric for one run.

    Attributes:
        run: column of the table.
        metric: row of the table.
        estimate: value, confidence interval and number of examples.
    """

    run: str
    metric: str
    estimate: Estimate


def format_table(results: Sequence[Result]) -> str:
    """Text table with a row per metric and a column per run, in order of appearance.

    Column `n` is the number of examples, one per run if they differ.
    """
    runs = list(dict.fromkeys(result.run for result in results))
    metrics = list(dict.fromkeys(result.metric for result in results))
    found = {(result.metric, result.run): result.estimate for result in results}
    head = ["", *runs, "n"]
    body = [
        [metric, *(_cell(found.get((metric, run))) for run in runs), _counts(metric, runs, found)]
        for metric in metrics
    ]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, *body)
    ]
    return "\n".join(lines)


def to_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Results as flat JSON objects; missing numbers are null."""
    return [
        {"run": result.run, "metric": result.metric}
        | {name: _finite_or_none(value) for name, value in asdict(result.estimate).items()}
        for result in results
    ]


def _cell(estimate: Estimate | None) -> str:
    if estimate is None or math.isnan(estimate.value):
        return "-"
    if math.isnan(estimate.low):
        whole = estimate.value.is_integer()
        return f"{estimate.value:,.0f}" if whole else _format(estimate.value)
    return f"{_format(estimate.value)} [{_format(estimate.low)}, {_format(estimate.high)}]"


def _format(value: float) -> str:
    """Value with four significant digits, or four decimals below 1."""
    if abs(value) < 1:
        return f"{value:.4f}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:#.4g}"


def _counts(metric: str, runs: Sequence[str], found: dict[tuple[str, str], Estimate]) -> str:
    counts = [found[metric, run].n for run in runs if (metric, run) in found]
    shown = [f"{counts[0]:,}"] if len({*counts}) == 1 else [f"{count:,}" for count in counts]
    return " / ".join(shown)


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None

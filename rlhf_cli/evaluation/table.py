"""Results as a table and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlhf_cli.evaluation.estimate import Estimate


@dataclass(frozen=True)
class Result:
    """One metric of one run.

    Attributes:
        run: the column.
        metric: the line.
        estimate: value, interval and number of examples.
    """

    run: str
    metric: str
    estimate: Estimate


def as_text(results: Sequence[Result]) -> str:
    """A line for each metric and a column for each run, in the order of the results.

    `n` is the number of examples; several numbers are those of the runs, in order.
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


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One flat object a result; a number that is not there is null."""
    return [
        {"run": result.run, "metric": result.metric}
        | {name: _number(value) for name, value in asdict(result.estimate).items()}
        for result in results
    ]


def _cell(estimate: Estimate | None) -> str:
    if estimate is None or math.isnan(estimate.value):
        return "-"
    if math.isnan(estimate.low):
        whole = estimate.value.is_integer()
        return f"{estimate.value:,.0f}" if whole else _show(estimate.value)
    return f"{_show(estimate.value)} [{_show(estimate.low)}, {_show(estimate.high)}]"


def _show(value: float) -> str:
    """Four digits of it, or of its fraction."""
    if abs(value) < 1:
        return f"{value:.4f}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:#.4g}"


def _counts(metric: str, runs: Sequence[str], found: dict[tuple[str, str], Estimate]) -> str:
    counts = [found[metric, run].n for run in runs if (metric, run) in found]
    shown = [f"{counts[0]:,}"] if len({*counts}) == 1 else [f"{count:,}" for count in counts]
    return " / ".join(shown)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""Checks of labels and scores of single responses: balance, length, constant scores."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from rlhf_cli.data.checks.content import CheckedData
from rlhf_cli.data.checks.finding import Finding
from rlhf_cli.data.records.types import LabelledRecord, ScoredRecord
from rlhf_cli.evaluation.intervals import Z

MAX_IMBALANCE = 2.0
"""Ratio of the weights of both classes from which on one of them dominates the loss."""

MIN_ROWS = 30
NOTE_CORRELATION, WARN_CORRELATION = 0.2, 0.4


def check_label_balance(data: CheckedData) -> Iterator[Finding]:
    """Check whether one label outweighs the other, with the stage's weights of classes."""
    labels = [r.record.label for r in data.records if isinstance(r.record, LabelledRecord)]
    if not labels:
        return
    good, bad = sum(labels), len(labels) - sum(labels)
    if not good or not bad:
        yield _one_label(data, "true" if good else "false", len(labels))
        return
    weights = [
        float(data.options.get(f"{name}_weight", 1.0)) for name in ("desirable", "undesirable")
    ]
    ratio = math.inf if not bad * weights[1] else good * weights[0] / (bad * weights[1])
    if 1 / MAX_IMBALANCE <= ratio <= MAX_IMBALANCE:
        return
    weighted = " with the given weights" if weights != [1.0, 1.0] else ""
    yield Finding(
        code="label-imbalance",
        severity="warning",
        message=f"{good} desirable and {bad} undesirable rows, {ratio:.2g} to 1{weighted}",
        count=min(good, bad),
        total=len(labels),
        advice=_balance_advice(data, good, bad),
    )


def _one_label(data: CheckedData, label: str, rows: int) -> Finding:
    return Finding(
        code="one-label",
        severity="error" if data.stage in ("bco", "dpo") else "warning",
        message=f"all rows have label {label}",
        count=rows,
        total=rows,
        advice="Add rows of the other label, or a file of pairs (prompt, chosen, rejected)",
    )


def _balance_advice(data: CheckedData, good: int, bad: int) -> str:
    """Return the weight that gives both classes the same total weight."""
    if "desirable_weight" not in data.options:
        return "Sample the rarer label more often, as with [{path: rare.jsonl, weight: 3}]"
    name, weight = ("undesirable", good / bad) if good > bad else ("desirable", bad / good)
    other = "desirable" if name == "undesirable" else "undesirable"
    return f"Try {name}_weight={weight:.2g} with {other}_weight=1, which weighs both labels alike"


def check_label_length(data: CheckedData) -> Iterator[Finding]:
    """Check whether label or score go with the length of the response."""
    if data.examples is None or "score" not in data.examples.columns or not data.records:
        return
    if not isinstance(data.records[0].record, LabelledRecord | ScoredRecord):
        return
    score = data.examples.columns["score"].astype(np.float64)
    length = data.trained_tokens.astype(np.float64)
    if len(score) < MIN_ROWS or not score.std() or not length.std():
        return
    value = float(np.corrcoef(length, score)[0, 1])
    low, high = _fisher_interval(value, len(score))
    least = low if value > 0 else -high
    if least <= NOTE_CORRELATION:
        return
    yield Finding(
        code="length-bias",
        severity="warning" if least > WARN_CORRELATION else "note",
        message=f"{'longer' if value > 0 else 'shorter'} responses are rated better: correlation "
        f"of length and rating {value:.2f} (95 % interval {low:.2f} to {high:.2f})",
        total=data.total,
        advice="Balance the lengths within each label, or the model learns length",
    )


def _fisher_interval(correlation: float, n: int) -> tuple[float, float]:
    """95 % interval of a correlation by Fisher's transform (Fisher 1921)."""
    center, half = math.atanh(min(max(correlation, -0.999999), 0.999999)), Z / math.sqrt(n - 3)
    return math.tanh(center - half), math.tanh(center + half)


def check_constant_scores(data: CheckedData) -> Iterator[Finding]:
    """Check whether all scores are the same."""
    scores = {r.record.score for r in data.records if isinstance(r.record, ScoredRecord)}
    if len(scores) == 1 and data.total > 1:
        yield Finding(
            code="constant-scores",
            severity="error",
            message=f"every score is {scores.pop():g}, so there is nothing to learn",
            count=data.total,
            total=data.total,
            advice="Check the column that data.columns.score names",
        )

"""Summary of scores: mean, deviation, quantiles, and agreement with what the rows say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from rlhf_cli.commands.score.rows import Row
from rlhf_cli.console import format_table
from rlhf_cli.evaluation.intervals import Measurement, Values, pooled_proportion, proportion
from rlhf_cli.evaluation.metrics import (
    auc,
    length_warning,
    pearson,
    preference_accuracy,
    ranking_accuracy,
    spearman,
)
from rlhf_cli.evaluation.table import Result
from rlhf_cli.evaluation.table import format_table as format_results

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

CORRELATED_RESPONSES = 30
"""Fewer responses can correlate with length by chance."""

Scored = Sequence[tuple[Row, Sequence[float]]]
"""Rows that were scored, each with the scores of its responses."""


def summary_lines(scored: Scored, column: str) -> list[str]:
    """Lines for the end of the command: a table of the scores, then of their agreement.

    Args:
        scored: at least one row.
        column: name of the score.
    """
    table = [["", "n", "mean", "sd", "min", *(f"{q:.0%}" for q in QUANTILES), "max"]]
    table += [[name, *_describe(values)] for name, values in _groups(scored, column)]
    lines = format_table(table).split("\n")
    results = [Result(column, one.metric, one.estimate()) for one in _agreement(scored)]
    if results:
        lines += format_results(results).split("\n")
    by_length = _scores_and_lengths(scored)
    if len(by_length[0]) >= CORRELATED_RESPONSES:
        warning = length_warning(float(pearson(*by_length)))
        lines += [warning] if warning else []
    return lines


def _groups(scored: Scored, column: str) -> Iterator[tuple[str, Values]]:
    """Name and values of each line of the table."""
    single = [scores[0] for row, scores in scored if row.kind == "single"]
    listed = [score for row, scores in scored if row.kind == "list" for score in scores]
    chosen, rejected = _pairs(scored)
    groups: list[tuple[str, Sequence[float] | Values]] = [
        (column, single),
        (f"{column}s", listed),
        (f"{column}_chosen", chosen),
        (f"{column}_rejected", rejected),
        (f"{column}_margin", chosen - rejected),
    ]
    for name, values in groups:
        if len(values):
            yield name, np.asarray(values, np.float64)


def _pairs(scored: Scored) -> tuple[Values, Values]:
    """Scores of the chosen and of the rejected responses, [n] each."""
    pairs = [scores for row, scores in scored if row.kind == "pair"]
    both = np.array(pairs, np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _describe(values: Values) -> list[str]:
    deviation = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    numbers = [values.min(), *np.quantile(values, QUANTILES), values.max()]
    shown = "-" if math.isnan(deviation) else f"{deviation:.4g}"
    return [f"{len(values):,}", f"{values.mean():.4g}", shown, *(f"{x:.4g}" for x in numbers)]


def _agreement(scored: Scored) -> Iterator[Measurement]:
    """Agreement of the scores with pairs, rankings, labels and scores in the rows."""
    chosen, rejected = _pairs(scored)
    if len(chosen):
        yield from preference_accuracy(chosen, rejected)
    ranked = [(row, scores) for row, scores in scored if row.kind == "list" and row.targets]
    if ranked:
        yield from _ranking(ranked)
    single = [(row.targets[0], s[0]) for row, s in scored if row.kind == "single" and row.targets]
    if single:
        targets, scores = np.array(single, np.float64).T
        if {*targets.tolist()} <= {0.0, 1.0}:
            yield Measurement("auc of labels", (scores, targets), auc)
        else:
            yield Measurement("rank correlation", (scores, targets), spearman)


def _ranking(ranked: Scored) -> Iterator[Measurement]:
    scores = np.concatenate([np.asarray(each, np.float64) for _, each in ranked])
    targets = np.concatenate([np.asarray(row.targets, np.float64) for row, _ in ranked])
    starts = np.cumsum([0, *(len(each) for _, each in ranked)])
    right, pairs, best = ranking_accuracy(scores, targets, starts)
    yield pooled_proportion("accuracy", right, pairs)
    yield proportion("best of each prompt", best)


def _scores_and_lengths(scored: Scored) -> tuple[Values, Values]:
    """Score and characters of every response, [R] each."""
    pairs = [
        (score, len(text))
        for row, scores in scored
        for (_, text), score in zip(row.pairs, scores, strict=True)
    ]
    both = np.array(pairs, np.float64)
    return both[:, 0], both[:, 1]

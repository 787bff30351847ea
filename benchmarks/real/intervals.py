"""Intervals for rows that are not independent: what they share is drawn again, not the rows."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.evaluation.intervals import Estimate, bootstrap_interval

Values = NDArray[np.float64]

Weighted = Callable[[Values], Values]
"""[..., n] weights of the rows -> [...]: a statistic of the weighted rows."""


def interval(statistic: Weighted, units: Sequence[Sequence[str]]) -> Estimate:
    """A statistic with the 95 % interval over draws of units.

    A row counts as often as its unit is drawn. One that belongs to two units, as a pair of
    arguments does that stand in many pairs each, counts as often as the product says (Owen 2007,
    Annals of Applied Statistics 1:386): that interval is rather too wide than too narrow.

    Args:
        statistic: of the rows' weights.
        units: [n], what each row belongs to; all have the same number of units.
    """
    names, index = np.unique(np.array(units), return_inverse=True)
    index = index.reshape(len(units), -1)
    count = len(names)

    def of_draw(drawn: Values) -> Values:
        rows = drawn.reshape(-1, drawn.shape[-1]).astype(np.int64)
        times = np.stack([np.bincount(row, minlength=count) for row in rows]).astype(np.float64)
        found = statistic(times[:, index].prod(-1))
        return found.reshape(drawn.shape[:-1])

    found = bootstrap_interval(of_draw, np.arange(count))
    return Estimate(found.value, found.low, found.high, len(units))


def mean(values: Values) -> Weighted:
    """The weighted mean of values [n]."""
    return lambda weights: (weights * values).sum(-1) / weights.sum(-1)


def auc(scores: Values, labels: NDArray[np.bool_]) -> Weighted:
    """The chance that a positive row scores higher than a negative one; equal scores are a half.

    Args:
        scores: [n].
        labels: [n].
    """
    apart = scores[labels][:, None] - scores[~labels][None]
    wins = (apart > 0) + 0.5 * (apart == 0)

    def of(weights: Values) -> Values:
        positive, negative = weights[..., labels], weights[..., ~labels]
        total: Values = ((positive @ wins) * negative).sum(-1)
        return total / (positive.sum(-1) * negative.sum(-1))

    return of


def less(one: Weighted, other: Weighted) -> Weighted:
    """By how much the first is larger, over the same draws."""
    return lambda weights: one(weights) - other(weights)

"""Bootstrap intervals: the same statistic over examples drawn again from the sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_cli.evaluation.estimate import Estimate

Values = NDArray[np.float64]

Statistic = Callable[..., Any]
"""Columns of [..., n] values, one a example -> [...]; works along the last axis."""

RESAMPLES = 2000
SHARE = 0.95
BLOCK = 1 << 20
"""Values drawn at once, which bounds the memory."""


def bootstrap(
    statistic: Statistic, *columns: ArrayLike, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """A statistic with its 95 % percentile interval (Efron 1979, Annals of Statistics 7:1).

    Whole examples are drawn, with repetition, so that columns stay paired and the tokens of an
    example stay together. A draw for which the statistic is not defined (of one class only, say)
    does not count.

    Args:
        statistic: of the columns, along their last axis.
        columns: [n] each, a value for each example; at least one column.
        seed: of the draws; columns of one length see the same draws.
        resamples: number of draws.

    Returns:
        Without an interval (NaN) where no draw differs from another: for one example, and where all
        are alike, which says nothing of how far apart others may be.
    """
    values = [np.asarray(column, np.float64) for column in columns]
    n = len(values[0])
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    whole = float(statistic(*values))
    drawn = _redraw(statistic, values, seed, resamples)
    drawn = drawn[np.isfinite(drawn)]
    tail = (1 - SHARE) / 2
    if not len(drawn) or drawn.min() == drawn.max():
        return Estimate(whole, math.nan, math.nan, n)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(whole, float(low), float(high), n)


def _redraw(statistic: Statistic, values: list[Values], seed: int, resamples: int) -> Values:
    """[resamples]: the statistic of each draw."""
    n = len(values[0])
    rng = np.random.default_rng(seed)
    at_once = max(1, BLOCK // n)
    parts = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for first in range(0, resamples, at_once):
            chosen = rng.integers(n, size=(min(at_once, resamples - first), n))
            parts.append(statistic(*(column[chosen] for column in values)))
    return np.concatenate(parts)


def mean(values: Values) -> Any:
    """[...]: the mean over examples."""
    return values.mean(-1)


def ratio(part: Values, whole: Values) -> Any:
    """[...]: a sum over examples divided by another, as nats by tokens."""
    return part.sum(-1) / whole.sum(-1)


def difference(one: Values, other: Values) -> Any:
    """[...]: by how much the first of two paired columns is larger, in the mean."""
    return (one - other).mean(-1)

"""Measurements with 95 % confidence intervals: Wilson's for proportions, else a bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]

Statistic = Callable[..., Any]
"""Columns [..., n], one value per example -> statistic [...], along the last axis."""

RESAMPLES = 2000
CONFIDENCE = 0.95
Z = 1.959963984540054
"""Normal quantile of a 95 % interval."""

VALUES_AT_ONCE = 1 << 20
"""Resampled values held at a time; bounds the memory."""


@dataclass(frozen=True)
class Estimate:
    """A value measured on a sample, with its 95 % confidence interval.

    Attributes:
        value: sample value; NaN if undefined.
        low: lower bound; NaN if the sample gives no interval.
        high: upper bound.
        n: number of examples.
    """

    value: float
    low: float
    high: float
    n: int

    def as_text(self, digits: str) -> str:
        """Value and interval: `0.71 [0.66, 0.75]`; of a value without an interval `0.71`.

        Args:
            digits: format of each number, as `.2f`.
        """
        value, low, high = (format(one, digits) for one in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]" if math.isfinite(self.low) else value


def wilson_interval(successes: float, n: int) -> Estimate:
    """Proportion with Wilson's score interval (Wilson 1927, JASA 22:209).

    Used for every proportion of independent examples: a bootstrap interval has no width where all
    or none succeed, and is too narrow close to that. Unlike scipy's `proportion_ci`, it accepts
    fractional successes, which ties give.

    Args:
        successes: 0 to n; may be fractional.
        n: independent examples.

    Returns:
        NaN for n = 0.
    """
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    proportion = successes / n
    scale = 1 + Z**2 / n
    center = (proportion + Z**2 / (2 * n)) / scale
    half = Z / scale * math.sqrt(proportion * (1 - proportion) / n + Z**2 / (4 * n**2))
    return Estimate(proportion, max(0.0, center - half), min(1.0, center + half), n)


def bootstrap_interval(
    statistic: Statistic, *columns: ArrayLike, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """Statistic with its 95 % bootstrap percentile interval (Efron 1979, Annals of Statistics 7:1).

    Whole examples are resampled, so columns stay paired and the tokens of an example stay together.
    Unlike `scipy.stats.bootstrap`, which then gives NaN, resamples without a defined statistic (of
    one class only, say) are left out.

    Args:
        statistic: computed over the columns' last axis.
        columns: [n] each, one value per example; at least one column.
        seed: seed of the resamples; equal lengths and seeds give equal resamples.
        resamples: number of resamples.

    Returns:
        Bounds are NaN if all resamples agree: for one example, or if all examples are equal, which
        says nothing about other examples.
    """
    values = [np.asarray(column, np.float64) for column in columns]
    n = len(values[0])
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    value = float(statistic(*values))
    resampled = _resample(statistic, values, seed, resamples)
    resampled = resampled[np.isfinite(resampled)]
    tail = (1 - CONFIDENCE) / 2
    if not len(resampled) or resampled.min() == resampled.max():
        return Estimate(value, math.nan, math.nan, n)
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(value, float(low), float(high), n)


def _resample(statistic: Statistic, values: list[Values], seed: int, resamples: int) -> Values:
    """Statistic of each resample, [resamples]."""
    n = len(values[0])
    rng = np.random.default_rng(seed)
    batch = max(1, VALUES_AT_ONCE // n)
    parts = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for first in range(0, resamples, batch):
            indices = rng.integers(n, size=(min(batch, resamples - first), n))
            parts.append(statistic(*(column[indices] for column in values)))
    return np.concatenate(parts)


def mean(values: Values) -> Any:
    """Mean over examples, [...]."""
    return values.mean(-1)


def ratio_of_sums(numerator: Values, denominator: Values) -> Any:
    """Ratio of two sums over examples, [...]: for example nats per token."""
    return numerator.sum(-1) / denominator.sum(-1)


def mean_difference(first: Values, second: Values) -> Any:
    """Mean of the paired differences first - second, [...]."""
    return (first - second).mean(-1)


@dataclass(frozen=True)
class Measurement:
    """A metric of a model, with the values of each example that it is computed from.

    Attributes:
        metric: name of the metric, as in the metrics of a run.
        columns: [n] each, one value per example.
        statistic: computed over the columns' last axis.
        is_proportion: the value is a proportion, 0 to 1.
    """

    metric: str
    columns: tuple[ArrayLike, ...]
    statistic: Statistic = mean
    is_proportion: bool = False

    @property
    def value(self) -> float:
        """Value of the metric."""
        return float(self.statistic(*(np.asarray(column, np.float64) for column in self.columns)))

    def estimate(self, seed: int = 0) -> Estimate:
        """Value with its confidence interval.

        A proportion of examples gets Wilson's interval, anything else a bootstrap's. A pooled
        proportion (such as correct tokens) also gets Wilson's if it is 0 or 1, counting each
        example once because its parts are not independent.
        """
        n = np.size(self.columns[0])
        if self.is_proportion and n and (self.statistic is mean or self.value in (0.0, 1.0)):
            return wilson_interval(self.value * n, n)
        return bootstrap_interval(self.statistic, *self.columns, seed=seed)


def proportion(metric: str, successes: ArrayLike) -> Measurement:
    """Proportion of examples.

    Args:
        metric: name of the metric.
        successes: [n], 1 or True for each example that counts, 0.5 for one that counts half.
    """
    return Measurement(metric, (successes,), is_proportion=True)


def pooled_proportion(metric: str, successes: ArrayLike, parts: ArrayLike) -> Measurement:
    """Proportion of the parts of all examples, such as their tokens.

    Args:
        metric: name of the metric.
        successes: [n], parts of each example that count.
        parts: [n], parts of each example.
    """
    return Measurement(metric, (successes, parts), ratio_of_sums, is_proportion=True)

"""Curves of metrics: values by step, thinned to few points, and smoothed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_POINTS = 240
"""Points of a drawn line; two a pixel of the drawing are not seen."""

SMOOTHED_FROM = 10
"""Fewer values are not smoothed."""

LARGEST = 1e150
"""Larger values count as not finite: squares and sums of them are not."""

WINDOW_SHARE = 1 / 20
"""Width of the moving average, as a share of all values."""


@dataclass(frozen=True)
class Series:
    """Values of one metric of one run.

    Attributes:
        steps: [n], ascending.
        values: [n]; some may not be finite.
    """

    steps: Floats
    values: Floats

    @cached_property
    def finite(self) -> Series:
        """The values that are finite."""
        kept = np.abs(self.values) < LARGEST
        return self if kept.all() else Series(self.steps[kept], self.values[kept])

    @property
    def lost(self) -> Floats:
        """Steps whose value is not finite."""
        return self.steps[~(np.abs(self.values) < LARGEST)]

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def first(self) -> float:
        """First finite value."""
        return float(self.finite.values[0])

    @property
    def last(self) -> float:
        """Last finite value."""
        return float(self.finite.values[-1])

    @cached_property
    def smoothed(self) -> Series:
        """Centered moving average; a few values are returned as they are."""
        whole = self.finite
        if len(whole) < SMOOTHED_FROM:
            return whole
        half = max(1, round(len(whole) * WINDOW_SHARE / 2))
        return Series(whole.steps, moving_average(whole.values, half))

    def thinned(self, most: int = MAX_POINTS) -> Series:
        """At most so many of the finite points, with the smallest and largest of each stretch."""
        whole = self.finite
        if len(whole) <= most:
            return whole
        kept = extreme_indices(whole.values, most // 2)
        return Series(whole.steps[kept], whole.values[kept])


def moving_average(values: Floats, half: int) -> Floats:
    """Mean of each value and `half` values on both sides, at the ends of those that exist."""
    n = len(values)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(n)
    start, end = np.maximum(at - half, 0), np.minimum(at + half + 1, n)
    means: Floats = (sums[end] - sums[start]) / (end - start)
    return means


def extreme_indices(values: Floats, stretches: int) -> NDArray[np.intp]:
    """Indices of the smallest and largest value of each stretch, ascending, with both ends."""
    bounds = np.linspace(0, len(values), stretches, dtype=int)
    found = {0, len(values) - 1}
    for start, end in pairwise(bounds):
        part = values[start:end]
        found |= {int(start + part.argmin()), int(start + part.argmax())}
    return np.array(sorted(found))


def read_series(lines: Iterable[Mapping[str, float]]) -> dict[str, Series]:
    """Values of every metric, in the order in which the metrics first appear.

    Args:
        lines: of `RunRecord.metrics`: `step` and numbers by name.
    """
    columns: dict[str, tuple[list[float], list[float]]] = {}
    for line in lines:
        step = line["step"]
        for name, value in line.items():
            if name not in columns:
                columns[name] = ([], [])
            steps, values = columns[name]
            steps.append(step)
            values.append(value)
    columns.pop("step", None)
    return {name: _series(*both) for name, both in columns.items()}


def _series(steps: list[float], values: list[float]) -> Series:
    x, y = _floats(steps), _floats(values)
    order = np.argsort(x, kind="stable")  # a log that was written twice goes back
    return Series(x[order], y[order])


def _floats(values: list[float]) -> Floats:
    try:
        return np.array(values, np.float64)
    except OverflowError:  # an integer beyond the largest float
        return np.array([_float(value) for value in values])


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")

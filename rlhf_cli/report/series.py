"""Curves of metrics: values by step, thinned to few points, and smoothed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import le
from typing import TypeVar

MAX_POINTS = 240
"""Points of a drawn line; two a pixel of the drawing are not seen."""

SMOOTHED_FROM = 10
"""Fewer values are not smoothed."""

WINDOW_SHARE = 1 / 20
"""Width of the moving average, as a share of all values."""

LARGEST = 1e150
"""Larger values count as not finite: squares and sums of them are not."""


@dataclass(frozen=True)
class Series:
    """Values of one metric of one run.

    Attributes:
        steps: [n], ascending.
        values: [n]; some may not be finite.
    """

    steps: Sequence[float]
    values: Sequence[float]

    @cached_property
    def finite(self) -> Series:
        """The values that are finite."""
        kept = [k for k, value in enumerate(self.values) if abs(value) < LARGEST]
        return self if len(kept) == len(self.values) else self.at(kept)

    @cached_property
    def lost(self) -> list[float]:
        """Steps whose value is not finite."""
        pairs = zip(self.steps, self.values, strict=True)
        return [step for step, value in pairs if not abs(value) < LARGEST]

    def at(self, indices: Iterable[int]) -> Series:
        """The values of some indices."""
        kept = list(indices)
        return Series([self.steps[k] for k in kept], [self.values[k] for k in kept])

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def first(self) -> float:
        """First finite value."""
        return self.finite.values[0]

    @property
    def last(self) -> float:
        """Last finite value."""
        return self.finite.values[-1]

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
        return whole if len(whole) <= most else whole.at(extreme_indices(whole.values, most // 2))


def moving_average(values: Sequence[float], half: int) -> list[float]:
    """Mean of each value and `half` values on both sides, at the ends of those that exist."""
    n = len(values)
    sums = list(accumulate(values, initial=0.0))
    ends = [(max(k - half, 0), min(k + half + 1, n)) for k in range(n)]
    return [(sums[end] - sums[start]) / (end - start) for start, end in ends]


def extreme_indices(values: Sequence[float], stretches: int) -> list[int]:
    """Indices of the smallest and largest value of each stretch, ascending, with both ends."""
    n = len(values)
    found = {0, n - 1}
    for stretch in range(stretches):
        start, end = stretch * n // stretches, (stretch + 1) * n // stretches
        part = values[start:end]
        found |= {start + part.index(min(part)), start + part.index(max(part))}
    return sorted(found)


T = TypeVar("T")


def pick(items: Sequence[T], most: int) -> list[T]:
    """At most so many items: the first, the last, and some evenly between."""
    n = len(items)
    if n <= most:
        return list(items)
    return [items[round(k * (n - 1) / (most - 1))] for k in range(most)]


def read_series(lines: Sequence[Mapping[str, float]]) -> dict[str, Series]:
    """Values of every metric, in the order in which the metrics first appear.

    Args:
        lines: of `RunRecord.metrics`: `step` and numbers by name.
    """
    names = dict.fromkeys(name for line in lines for name in line if name != "step")
    return {name: _series(name, [line for line in lines if name in line]) for name in names}


def _series(name: str, lines: Sequence[Mapping[str, float]]) -> Series:
    """Values in the order of their steps: a log that was written twice goes back."""
    steps, values = [line["step"] for line in lines], [line[name] for line in lines]
    if all(map(le, steps, steps[1:])):
        return Series(steps, values)
    order = sorted(range(len(steps)), key=steps.__getitem__)
    return Series(steps, values).at(order)

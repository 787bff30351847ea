"""Axes of a drawing: range, ticks, and the place of a value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_cli.report.text import show_tick

OUTLIERS_FROM = 40
"""Fewer values are all shown."""

OUTLIER_FACTOR = 6.0
"""An axis leaves out values beyond the 1st and 99th percentile if it would be so many times
wider with them."""


@dataclass(frozen=True)
class Axis:
    """A linear scale from values to places.

    Attributes:
        low: value at `start`.
        high: value at `end`.
        start: place in the drawing.
        end: place in the drawing.
        ticks: marked values.
        labels: text of each.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    labels: tuple[str, ...]

    def place(self, value: float) -> float:
        """Place of a value; of one beyond the axis, the nearer end."""
        inside = min(max(value, self.low), self.high)
        return self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start)

    def places(self, values: Sequence[float]) -> list[float]:
        """As `place`, of many values."""
        return [self.place(value) for value in values]


def nice_step(span: float, most: int) -> float:
    """Distance of at most `most` + 1 ticks over a span: 1, 2 or 5 times a power of ten."""
    rough = span / most
    power = 10.0 ** math.floor(math.log10(rough))
    return next((m * power for m in (1, 2, 5) if m * power >= rough), 10 * power)


def make_axis(
    low: float,
    high: float,
    start: float,
    end: float,
    *,
    unit: str = "",
    most: int = 5,
    whole: bool = False,
    tight: bool = False,
) -> Axis:
    """Axis over a range of values.

    Args:
        low: smallest value.
        high: largest value.
        start: place of the smallest.
        end: place of the largest.
        unit: of the values.
        most: ticks, about.
        whole: ticks are whole numbers.
        tight: the axis ends at the values, else at ticks around them.
    """
    low, high = _widened(low, high, whole=whole)
    step = nice_step(high - low, most)
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if tight:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    else:
        low, high = first * step, last * step
    ticks = tuple(k * step for k in range(first, last + 1))
    labels = tuple(show_tick(tick, step, unit) for tick in ticks)
    return Axis(low, high, start, end, ticks, labels)


def _widened(low: float, high: float, *, whole: bool) -> tuple[float, float]:
    """A range that has a width in floating point."""
    if whole:
        return low, max(high, low + 1)
    least = 1e-6 * max(abs(low), abs(high)) or 1e-6
    if high - low >= least:
        return low, high
    room = max(0.1 * abs(low), least) if low else 1.0
    return low - room, high + room


def shown_range(values: Sequence[float]) -> tuple[float, float]:
    """Smallest and largest of the values, without outliers that would flatten all others."""
    low, high = min(values), max(values)
    if len(values) < OUTLIERS_FROM:
        return low, high
    ordered = sorted(values)
    last = len(values) - 1
    p1, p99 = ordered[round(0.01 * last)], ordered[round(0.99 * last)]
    room = 0.5 * (p99 - p1)
    if room and high - low > OUTLIER_FACTOR * (p99 - p1):
        return max(low, p1 - room), min(high, p99 + room)
    return low, high

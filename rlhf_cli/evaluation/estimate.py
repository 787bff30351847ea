"""A number measured on a sample, with the interval in which that of all data may lie."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval.

    Attributes:
        value: of the sample; NaN where nothing could be measured.
        low: lower bound; NaN where the sample is too small for an interval.
        high: upper bound.
        n: examples that it was measured on.
    """

    value: float
    low: float
    high: float
    n: int


Z = 1.959963984540054
"""The normal distribution has 95 % of its mass within this many standard deviations."""


def wilson(successes: float, n: int) -> Estimate:
    """A share with its score interval (Wilson 1927, JASA 22:209).

    Taken for every share of independent examples instead of a bootstrap, which gives an interval of
    no width where all or none succeed, and too narrow a one near those ends.

    Args:
        successes: 0 to n; need not be whole.
        n: independent examples.

    Returns:
        NaN for n = 0.
    """
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    share = successes / n
    scale = 1 + Z**2 / n
    middle = (share + Z**2 / (2 * n)) / scale
    half = Z / scale * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half), n)

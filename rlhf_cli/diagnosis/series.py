"""Statistics of metrics over the steps of a run, with the noise of a single line in mind."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import StatisticsError, fmean, median, stdev
from statistics import correlation as pearson
from typing import Any

from rlhf_cli.runs.record import RunRecord

MIN_LINES = 10
"""Lines below which the beginning and the end of a series are not compared."""

END_SHARE = 0.2
"""Share of all lines that the beginning and the end have, each."""

MIN_END, MAX_END = 3, 25
"""Lines of the beginning and of the end, each."""

MIN_APART = 4
"""Lines at each end from which on two ends that do not overlap count as a change: 1 in 35 by
chance."""

SURE = 3.0
"""Standard errors beyond which a change is taken for one: about 1 in 400 by chance."""


@dataclass(frozen=True)
class Mean:
    """Mean of some lines, and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Change:
    """A metric at the beginning and at the end of a run.

    Attributes:
        first: mean over the beginning.
        last: mean over the end.
        error: standard error of the difference.
        apart: 1 where every value of the end is above every one of the beginning, -1 where below,
            else 0: a steep series has a large error and yet no doubt.
    """

    first: float
    last: float
    error: float
    apart: int = 0

    @property
    def difference(self) -> float:
        """The end minus the beginning."""
        return self.last - self.first

    @property
    def rose(self) -> bool:
        """Whether the end is higher by more than noise."""
        return self.apart > 0 or self.difference > SURE * self.error

    @property
    def fell(self) -> bool:
        """Whether the end is lower by more than noise."""
        return self.apart < 0 or -self.difference > SURE * self.error

    @property
    def ratio(self) -> float:
        """The end divided by the beginning; infinite where that is 0."""
        return self.last / self.first if self.first else math.inf


def values_of(record: RunRecord, name: str) -> list[float]:
    """The finite values of a metric, oldest first."""
    return [value for _, value in record.series(name)]


def mean(values: Sequence[float]) -> Mean:
    """Mean of at least one value, with its standard error; 0 for a single value."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Mean(fmean(values), error)


def change_of(
    values: Sequence[float], least: int = MIN_LINES, most: int = MAX_END
) -> Change | None:
    """Compare the end of a series with its beginning.

    Args:
        values: oldest first.
        least: number of values below which the answer is None.
        most: number of values at each end.
    """
    if len(values) < max(2, least):
        return None
    size = max(1, min(most, max(MIN_END, int(END_SHARE * len(values))), len(values) // 2))
    start, end = values[:size], values[-size:]
    first, last = mean(start), mean(end)
    apart = 0
    if size >= MIN_APART:
        apart = (min(end) > max(start)) - (max(end) < min(start))
    return Change(first.value, last.value, math.hypot(first.error, last.error), apart)


def change(record: RunRecord, name: str, least: int = MIN_LINES) -> Change | None:
    """Compare the end of a metric with its beginning; None with fewer lines than `least`."""
    return change_of(values_of(record, name), least)


def late(record: RunRecord, name: str) -> float | None:
    """Median of the last third of a metric's lines; None without any."""
    values = values_of(record, name)
    return median(values[-max(1, len(values) // 3) :]) if values else None


def high(record: RunRecord, name: str) -> float | None:
    """Upper quartile of a metric's lines: what it is while the learning rate is high.

    None without any line.
    """
    values = sorted(values_of(record, name))
    return values[3 * len(values) // 4] if values else None


def correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Pearson's correlation; None for fewer than three points or without spread."""
    try:
        return pearson(xs, ys) if len(xs) >= 3 else None
    except StatisticsError:  # all values of one of the two are equal
        return None


def number(record: RunRecord, key: str, default: float = 0.0) -> float:
    """A number of the configuration; the default where it is unknown or a word."""
    value = record.options.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return default
    return float(value)


def counts(record: RunRecord, name: str = "data") -> dict[str, Any]:
    """Counts of rows in the manifest, of `data` or `held_out_data`; empty where there are none."""
    found = record.manifest.get(name)
    return found if isinstance(found, dict) else {}


CHANCE = 0.5
"""Accuracy of a ranking of pairs at random."""

GAP = 0.15
"""Training accuracy above the held-out one that the choice of rows does not explain."""


def error_at_chance(record: RunRecord, unknown: int) -> float:
    """Standard error of the held-out accuracy at chance.

    Args:
        record: of a run; its held-out examples are counted.
        unknown: number of examples to assume where they are not known.
    """
    examples = counts(record, "held_out_data").get("examples")
    return 0.5 / math.sqrt(examples if isinstance(examples, int) and examples else unknown)


def word(record: RunRecord, key: str, default: str = "") -> Any:
    """A value of the configuration; the default where it is unknown."""
    return record.options.get(key, default)


def peak_rate(record: RunRecord) -> float:
    """The highest learning rate that was used; 0 where it is unknown."""
    return max(values_of(record, "lr"), default=number(record, "train.lr"))


def scaled(record: RunRecord, key: str, factor: float, default: float = 0.0) -> str:
    """Override that multiplies a number of the configuration, rounded to two digits."""
    value = peak_rate(record) if key == "train.lr" else number(record, key, default)
    return f"{key}={value * factor:.2g}"


def times(record: RunRecord, key: str, factor: float, default: float) -> str:
    """Override that multiplies a whole number of the configuration."""
    return f"{key}={max(1, round(number(record, key, default) * factor))}"


def last_step(record: RunRecord) -> int:
    """The last step that was logged; 0 before the first."""
    return int(record.metrics[-1]["step"]) if record.metrics else 0

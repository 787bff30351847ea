"""How well scores rank: of pairs which is better, of two classes which is which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_cli.evaluation.bootstrap import Values
from rlhf_cli.evaluation.estimate import Estimate, wilson


@dataclass(frozen=True)
class Agreement:
    """How scores of pairs agree with a judge's choice.

    Attributes:
        right: pairs whose chosen response has the higher score.
        wrong: pairs whose rejected response has.
        ties: pairs with equal scores.
    """

    right: int
    wrong: int
    ties: int

    @property
    def n(self) -> int:
        """All pairs."""
        return self.right + self.wrong + self.ties

    @property
    def accuracy(self) -> Estimate:
        """Share of right pairs; a tie is not right."""
        return wilson(self.right, self.n)

    @property
    def with_halves(self) -> Estimate:
        """The same with a tie as half a right pair, as if a coin decided it."""
        return wilson(self.right + self.ties / 2, self.n)

    @property
    def tied(self) -> Estimate:
        """Share of ties."""
        return wilson(self.ties, self.n)


def agreement(chosen: ArrayLike, rejected: ArrayLike) -> Agreement:
    """Compare scores of pairs.

    Args:
        chosen: [n], the score of each chosen response.
        rejected: [n], that of the other.
    """
    apart = np.asarray(chosen, np.float64) - np.asarray(rejected, np.float64)
    return Agreement(int((apart > 0).sum()), int((apart < 0).sum()), int((apart == 0).sum()))


def length_baselines(chosen: ArrayLike, rejected: ArrayLike) -> dict[str, Agreement]:
    """What a judge would reach who always takes the longer response, or always the shorter.

    Args:
        chosen: [n], the length of each chosen response.
        rejected: [n], that of the other; both in one unit.
    """
    return {"longer": agreement(chosen, rejected), "shorter": agreement(rejected, chosen)}


def ranks(values: ArrayLike) -> Values:
    """[..., n]: ranks from 1 along the last axis; equal values share the mean of theirs."""
    found = np.asarray(values, np.float64)
    order = found.argsort(-1, kind="stable")
    rising = np.take_along_axis(found, order, -1)
    place = np.broadcast_to(np.arange(found.shape[-1], dtype=np.float64), found.shape)
    ends = np.ones((*found.shape[:-1], 1), bool)
    changes = rising[..., 1:] != rising[..., :-1]
    first = np.maximum.accumulate(np.where(np.concatenate([ends, changes], -1), place, 0), axis=-1)
    last = np.where(np.concatenate([changes, ends], -1), place, np.inf)
    last = np.minimum.accumulate(last[..., ::-1], axis=-1)[..., ::-1]
    result = np.empty_like(found)
    np.put_along_axis(result, order, (first + last) / 2 + 1, -1)
    return result


def auc(scores: ArrayLike, labels: ArrayLike) -> Any:
    """[...]: the chance that a positive example scores higher than a negative one.

    The area under the ROC curve by ranks (Mann and Whitney 1947); equal scores count as a half.

    Args:
        scores: [..., n].
        labels: [..., n], 1 or 0.

    Returns:
        NaN where there is only one class.
    """
    positive = np.asarray(labels, np.float64) > 0.5
    count = positive.sum(-1)
    others = positive.shape[-1] - count
    above = (ranks(scores) * positive).sum(-1) - count * (count + 1) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return above / (count * others)


def pearson(one: ArrayLike, other: ArrayLike) -> Any:
    """[...]: the linear correlation of two columns along their last axis; NaN for a constant."""
    x, y = (_centred(np.asarray(column, np.float64)) for column in (one, other))
    scale = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (x * y).sum(-1) / scale


def spearman(one: ArrayLike, other: ArrayLike) -> Any:
    """[...]: the correlation of ranks (Spearman 1904), for what rises together but not linearly."""
    return pearson(ranks(one), ranks(other))


def _centred(values: Values) -> Values:
    centred: Values = values - values.mean(-1, keepdims=True)
    return centred


MOST_CORRELATION = 0.5


def length_warning(correlation: float) -> str:
    """A line where scores follow the length of the responses; else empty."""
    if not abs(correlation) > MOST_CORRELATION:
        return ""
    more = "longer" if correlation > 0 else "shorter"
    return (
        f"warning: scores follow length (correlation {correlation:.2f}): a policy trained on them "
        f"may learn to write {more} responses, not better ones"
    )


@dataclass(frozen=True)
class Bucket:
    """Examples whose values lie close together.

    Attributes:
        low: smallest value in it.
        high: largest value in it.
        right: the share that is right.
    """

    low: float
    high: float
    right: Estimate


def accuracy_by(values: ArrayLike, right: ArrayLike, count: int = 4) -> list[Bucket]:
    """The share that is right in each of some buckets of about equal size, by quantiles.

    Equal values are never parted, so that there can be fewer buckets, and uneven ones.

    Args:
        values: [n], what the buckets are made by: margins, or differences of length.
        right: [n], 1, 0, or a half for a tie.
        count: buckets at most.
    """
    by, hit = np.asarray(values, np.float64), np.asarray(right, np.float64)
    if not len(by):
        return []
    edges = np.unique(np.quantile(by, np.arange(1, count) / count))
    place = np.searchsorted(edges, by, side="left")  # a value on an edge is in the bucket below
    members = [place == number for number in np.unique(place)]
    return [_bucket(by[kept], hit[kept]) for kept in members]


def _bucket(values: NDArray[np.float64], hit: NDArray[np.float64]) -> Bucket:
    return Bucket(float(values.min()), float(values.max()), wilson(float(hit.sum()), len(hit)))

"""How well scores rank: of pairs which is better, of two classes which is which."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rlhf_cli.evaluation.bootstrap import Values
from rlhf_cli.evaluation.measured import Measured, share_of


def order(one: ArrayLike, other: ArrayLike) -> Values:
    """[n]: 1 where the first is larger, -1 where it is smaller, 0 where they are equal."""
    found: Values = np.sign(np.asarray(one, np.float64) - np.asarray(other, np.float64))
    return found


def agreement(chosen: ArrayLike, rejected: ArrayLike) -> list[Measured]:
    """How scores of pairs agree with a judge's choice; ties apart, where there are any.

    Args:
        chosen: [n], the score of each chosen response.
        rejected: [n], that of the other.
    """
    right = order(chosen, rejected)
    found = [share_of("accuracy", right > 0)]
    if (right == 0).any():
        found += [share_of("ties", right == 0), share_of("accuracy, ties as half", _halves(right))]
    return found


def ranking_agreement(
    scores: ArrayLike, said: ArrayLike, starts: ArrayLike
) -> tuple[Values, Values, Values]:
    """How scores of rankings agree with a judge's.

    Args:
        scores: [R], of each response.
        said: [R], what the judge gave it; ties are no pair.
        starts: [E + 1], bounds of the rankings in the responses.

    Returns:
        [E] each: pairs in the right order (those whose scores tie count as a half), pairs, and 1
        where the response that scores highest is one that the judge put first.
    """
    ours, theirs, bounds = np.asarray(scores), np.asarray(said), np.asarray(starts)
    right, pairs, best = [], [], []
    for start, end in itertools.pairwise(bounds.tolist()):
        own, given = ours[start:end], theirs[start:end]
        better, worse = np.nonzero(given[:, None] > given[None])
        right.append(_halves(order(own[better], own[worse])).sum())
        pairs.append(len(better))
        best.append(given[own.argmax()] == given.max())
    return np.array(right), np.array(pairs, np.float64), np.array(best, np.float64)


def length_baselines(chosen: ArrayLike, rejected: ArrayLike) -> list[Measured]:
    """What a judge would reach who always takes the longer response, or always the shorter.

    Two of one length count as half right.

    Args:
        chosen: [n], the length of each chosen response.
        rejected: [n], that of the other; both in one unit.
    """
    longer = order(chosen, rejected)
    return [
        share_of("always the longer", _halves(longer)),
        share_of("always the shorter", _halves(-longer)),
    ]


def _halves(right: Values) -> Values:
    """[n]: 1, 0.5 or 0 for 1, 0 or -1."""
    return (right + 1) / 2


def ranks(values: ArrayLike) -> Values:
    """[..., n]: ranks from 1 along the last axis; equal values share the mean of theirs."""
    found = np.asarray(values, np.float64)
    rising_order = found.argsort(-1, kind="stable")
    rising = np.take_along_axis(found, rising_order, -1)
    place = np.broadcast_to(np.arange(found.shape[-1], dtype=np.float64), found.shape)
    ends = np.ones((*found.shape[:-1], 1), bool)
    changes = rising[..., 1:] != rising[..., :-1]
    first = np.maximum.accumulate(np.where(np.concatenate([ends, changes], -1), place, 0), axis=-1)
    last = np.where(np.concatenate([changes, ends], -1), place, np.inf)
    last = np.minimum.accumulate(last[..., ::-1], axis=-1)[..., ::-1]
    result = np.empty_like(found)
    np.put_along_axis(result, rising_order, (first + last) / 2 + 1, -1)
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


def by_label(values: ArrayLike, labels: ArrayLike) -> list[Measured]:
    """How values of rows tell desirable ones from others; of one class only, the mean it has.

    Args:
        values: [n].
        labels: [n], 1 desirable, 0 undesirable.

    Returns:
        `auc`, `chosen` and `rejected`, those that the rows have.
    """
    value, desirable = np.asarray(values), np.asarray(labels) > 0.5
    sides = {"chosen": value[desirable], "rejected": value[~desirable]}
    means = [Measured(name, (side,)) for name, side in sides.items() if len(side)]
    both = len(means) == len(sides)
    return [Measured("auc", (value, desirable), auc), *means] if both else means


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


def accuracy_by(name: str, values: ArrayLike, right: ArrayLike, count: int = 4) -> list[Measured]:
    """The share that is right in each of some buckets of about equal size, by quantiles.

    Equal values are never parted, so that there can be fewer buckets, and uneven ones.

    Args:
        name: of the values; begins the metrics' names, before the smallest and largest value.
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
    return [share_of(f"{name} {_span(by[kept])}", hit[kept]) for kept in members]


def _span(values: Values) -> str:
    return f"{values.min():.3g} to {values.max():.3g}"

"""Metrics of scores: preference accuracy, AUC, correlation, calibration, win rate."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_cli.evaluation.intervals import Estimate, Measurement, Values, proportion, wilson_interval


def compare(first: ArrayLike, second: ArrayLike) -> Values:
    """Sign of first - second, [n]: 1, 0 or -1."""
    signs: Values = np.sign(np.asarray(first, np.float64) - np.asarray(second, np.float64))
    return signs


def _win_value(signs: Values) -> Values:
    """1, 0.5 or 0 for signs 1, 0 or -1; [n]."""
    return (signs + 1) / 2


def preference_accuracy(chosen: ArrayLike, rejected: ArrayLike) -> list[Measurement]:
    """Accuracy of scores on preference pairs; with ties, also their proportion and half credit.

    Args:
        chosen: [n], score of each chosen response.
        rejected: [n], score of each rejected response.
    """
    signs = compare(chosen, rejected)
    found = [proportion("accuracy", signs > 0)]
    if (signs == 0).any():
        halves = _win_value(signs)
        found += [proportion("ties", signs == 0), proportion("accuracy, ties as half", halves)]
    return found


def ranking_accuracy(
    scores: ArrayLike, targets: ArrayLike, starts: ArrayLike
) -> tuple[Values, Values, Values]:
    """Pairwise accuracy of scores on rankings.

    Args:
        scores: [R], score of each response.
        targets: [R], score of each response in the data; equal ones make no pair.
        starts: [E + 1], first response of each ranking, and R.

    Returns:
        [E] each: correctly ordered pairs (tied scores count half), pairs, and 1 where the response
        with the highest score is among the best in the data.
    """
    scores, targets, bounds = np.asarray(scores), np.asarray(targets), np.asarray(starts)
    correct, pairs, best = [], [], []
    for start, end in itertools.pairwise(bounds.tolist()):
        own, target = scores[start:end], targets[start:end]
        better, worse = np.nonzero(target[:, None] > target[None])
        correct.append(_win_value(compare(own[better], own[worse])).sum())
        pairs.append(len(better))
        best.append(target[own.argmax()] == target.max())
    return np.array(correct), np.array(pairs, np.float64), np.array(best, np.float64)


def length_baselines(chosen: ArrayLike, rejected: ArrayLike) -> list[Measurement]:
    """Accuracy of always preferring the longer response, and of always the shorter.

    Equal lengths count half.

    Args:
        chosen: [n], length of each chosen response.
        rejected: [n], length of each rejected response, in the same unit.
    """
    signs = compare(chosen, rejected)
    return [
        proportion("always the longer", _win_value(signs)),
        proportion("always the shorter", _win_value(-signs)),
    ]


def accuracy_by_quantile(
    name: str, values: ArrayLike, correct: ArrayLike, count: int = 4
) -> list[Measurement]:
    """Accuracy in buckets of about equal size, split at quantiles of `values`.

    Equal values share a bucket, so buckets can be fewer and uneven.

    Args:
        name: name of the values; metrics are called by it and the bucket's range.
        values: [n], values to bucket by: margins or length differences.
        correct: [n], 1, 0, or 0.5 for a tie.
        count: most buckets.
    """
    by, hits = np.asarray(values, np.float64), np.asarray(correct, np.float64)
    if not len(by):
        return []
    edges = np.unique(np.quantile(by, np.arange(1, count) / count))
    bucket = np.searchsorted(edges, by, side="left")  # a value on an edge goes to the bucket below
    members = [bucket == number for number in np.unique(bucket)]
    return [proportion(f"{name} {_range(by[kept])}", hits[kept]) for kept in members]


def _range(values: Values) -> str:
    return f"{values.min():.3g} to {values.max():.3g}"


def auc(scores: ArrayLike, labels: ArrayLike) -> Any:
    """Area under the ROC curve, [...]: P(a positive example scores higher than a negative one).

    By ranks (Mann and Whitney 1947), ties count half. sklearn's `roc_auc_score` takes one sample at
    a time and refuses a single class, both of which bootstrap resamples need.

    Args:
        scores: [..., n].
        labels: [..., n], 1 or 0.

    Returns:
        NaN if there is only one class.
    """
    positive = np.asarray(labels, np.float64) > 0.5
    positives = positive.sum(-1)
    negatives = positive.shape[-1] - positives
    rank_sum = (_rank(scores) * positive).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def metrics_by_label(values: ArrayLike, labels: ArrayLike) -> list[Measurement]:
    """AUC of values against labels, and their mean per class; the mean only for a single class.

    Args:
        values: [n].
        labels: [n], 1 desirable, 0 undesirable.

    Returns:
        `auc`, `chosen` and `rejected`, as far as the rows have them.
    """
    value, desirable = np.asarray(values), np.asarray(labels) > 0.5
    classes = {"chosen": value[desirable], "rejected": value[~desirable]}
    means = [Measurement(name, (members,)) for name, members in classes.items() if len(members)]
    if len(means) < len(classes):
        return means
    return [Measurement("auc", (value, desirable), auc), *means]


def pearson(first: ArrayLike, second: ArrayLike) -> Any:
    """Pearson correlation along the last axis, [...]; NaN for a constant."""
    x, y = (_center(np.asarray(column, np.float64)) for column in (first, second))
    scale = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (x * y).sum(-1) / scale


def spearman(first: ArrayLike, second: ArrayLike) -> Any:
    """Spearman rank correlation along the last axis, [...]; NaN for a constant."""
    return pearson(_rank(first), _rank(second))


def _center(values: Values) -> Values:
    centered: Values = values - values.mean(-1, keepdims=True)
    return centered


def _rank(values: ArrayLike) -> Values:
    """Ranks from 1 along the last axis, [..., n]; equal values share their mean rank."""
    from scipy.stats import rankdata  # slow to import, and most evaluations rank nothing

    ranks: Values = rankdata(values, axis=-1)
    return ranks


LENGTH_WARNING_CORRELATION = 0.5


def length_warning(correlation: float) -> str:
    """Warning that scores follow response length, or empty."""
    if not abs(correlation) > LENGTH_WARNING_CORRELATION:
        return ""
    longer = "longer" if correlation > 0 else "shorter"
    return (
        f"warning: scores follow length (correlation {correlation:.2f}): a policy trained on them "
        f"may learn to write {longer} responses, not better ones"
    )


CALIBRATION_BINS = 10


@dataclass(frozen=True)
class CalibrationBin:
    """One bin of a reliability curve.

    Attributes:
        predicted: mean predicted probability.
        observed: observed frequency.
    """

    predicted: float
    observed: Measurement


def pair_confidence(chosen: ArrayLike, rejected: ArrayLike) -> tuple[Values, Values]:
    """Predicted probability that the higher-scoring response is the chosen one, and whether it is.

    P(chosen is better) = sigmoid(r_w - r_l) cannot be calibrated against pairs that all have the
    better response first; the probability given to the higher-scoring response can.

    Args:
        chosen: [n], score of each chosen response.
        rejected: [n], score of each rejected response.

    Returns:
        [n] probabilities from 0.5 to 1, and [n] 1, 0, or 0.5 for a tie.
    """
    margin = np.asarray(chosen, np.float64) - np.asarray(rejected, np.float64)
    return 1 / (1 + np.exp(-np.abs(margin))), (np.sign(margin) + 1) / 2


def reliability_curve(
    predicted: ArrayLike, outcomes: ArrayLike, *, low: float = 0.0, bins: int = CALIBRATION_BINS
) -> list[CalibrationBin]:
    """Reliability curve: predicted probability and observed frequency in bins of equal width.

    Args:
        predicted: [n], probabilities from `low` to 1.
        outcomes: [n], 1, 0 or 0.5.
        low: lowest possible probability; 0.5 for pairs.
        bins: bins between `low` and 1; empty ones are left out.
    """
    probability, outcome = np.asarray(predicted, np.float64), np.asarray(outcomes, np.float64)
    bin_of = _bin_indices(probability, low, bins)
    found = []
    for number in np.unique(bin_of):
        inside = bin_of == number
        mean = float(probability[inside].mean())
        name = f"right where {mean:.2f} is predicted"
        found.append(CalibrationBin(mean, proportion(name, outcome[inside])))
    return found


def _bin_indices(probability: Values, low: float, bins: int) -> NDArray[np.int64]:
    """Bin of each probability, [..., n]; 1 is in the last bin."""
    return np.minimum((probability - low) / (1 - low) * bins, bins - 1).astype(np.int64)


def expected_calibration_error(
    predicted: Values, outcomes: Values, *, low: float = 0.0, bins: int = CALIBRATION_BINS
) -> Any:
    """Expected calibration error (ECE), [...] (Guo et al. 2017, arXiv:1706.04599, eq. 3).

    Mean |predicted - observed| over bins, weighted by their examples; 0 is best. Noise alone makes
    it positive, more so with few examples per bin.

    Args:
        predicted: [..., n], probabilities from `low` to 1.
        outcomes: [..., n], 1, 0 or 0.5.
        low: lowest possible probability; 0.5 for pairs.
        bins: bins of equal width between `low` and 1.
    """
    bin_of = _bin_indices(predicted, low, bins)
    residuals = outcomes - predicted
    gaps = (abs((residuals * (bin_of == number)).sum(-1)) for number in range(bins))
    return sum(gaps) / predicted.shape[-1]


@dataclass(frozen=True)
class Wins:
    """Wins, losses and ties of a model against a baseline on the same prompts.

    Attributes:
        wins: prompts where the model scores higher.
        losses: prompts where the model scores lower.
        ties: prompts with equal scores.
    """

    wins: int
    losses: int
    ties: int

    @property
    def rate(self) -> Estimate:
        """Win rate wins / (wins + losses) with Wilson's interval; NaN if all are ties."""
        return wilson_interval(self.wins, self.wins + self.losses)


def count_wins(own: ArrayLike, baseline: ArrayLike) -> Wins:
    """Count wins, losses and ties by score.

    Args:
        own: [n], score of the model's answer to each prompt.
        baseline: [n], score of the baseline's answer.
    """
    signs = compare(own, baseline)
    return Wins(int((signs > 0).sum()), int((signs < 0).sum()), int((signs == 0).sum()))

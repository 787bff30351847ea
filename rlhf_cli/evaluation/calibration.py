"""Whether predicted chances come true."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rlhf_cli.evaluation.bootstrap import Values
from rlhf_cli.evaluation.estimate import Estimate, wilson

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Examples with about the same predicted chance.

    Attributes:
        predicted: their mean predicted chance.
        observed: how often it came true.
    """

    predicted: float
    observed: Estimate


def pair_confidence(chosen: ArrayLike, rejected: ArrayLike) -> tuple[Values, Values]:
    """How sure scores are of each pair, and whether they are right.

    The predicted P(chosen is better) is sigmoid(r_w - r_l). Of pairs that are all written down with
    the better response first, it comes true every time, so that there is nothing to compare; the
    chance that is given to whichever response scores higher can be compared.

    Args:
        chosen: [n], the score of each chosen response.
        rejected: [n], that of the other.

    Returns:
        [n] chances from 0.5 to 1, and [n] 1, 0, or 0.5 for a tie.
    """
    margin = np.asarray(chosen, np.float64) - np.asarray(rejected, np.float64)
    return 1 / (1 + np.exp(-np.abs(margin))), (np.sign(margin) + 1) / 2


def reliability(
    predicted: ArrayLike, came_true: ArrayLike, *, low: float = 0.0, bins: int = BINS
) -> list[Bin]:
    """The reliability curve: what was predicted beside what came true, in bins of equal width.

    Args:
        predicted: [n], chances from `low` to 1.
        came_true: [n], 1, 0, or a half.
        low: the lowest chance there can be; 0.5 for pairs.
        bins: between `low` and 1; empty ones are left out.
    """
    chance, truth = np.asarray(predicted, np.float64), np.asarray(came_true, np.float64)
    place = np.minimum((chance - low) / (1 - low) * bins, bins - 1).astype(np.int64)
    members = [place == number for number in np.unique(place)]
    return [
        Bin(float(chance[kept].mean()), wilson(float(truth[kept].sum()), int(kept.sum())))
        for kept in members
    ]


def calibration_error(curve: list[Bin]) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, eq. 3).

    The mean distance of predicted and observed over the bins, each weighed by its examples; 0 is
    best. Noise alone makes it positive: more so with few examples a bin.
    """
    total = sum(one.observed.n for one in curve)
    apart = sum(one.observed.n * abs(one.observed.value - one.predicted) for one in curve)
    return apart / total

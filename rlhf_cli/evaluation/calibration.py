"""Whether predicted chances come true."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_cli.evaluation.bootstrap import Values
from rlhf_cli.evaluation.measured import Measured, share_of

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Examples with about the same predicted chance.

    Attributes:
        predicted: their mean predicted chance.
        observed: how often it came true.
    """

    predicted: float
    observed: Measured


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
    place = _bin_of(chance, low, bins)
    return [_bin(chance[place == number], truth[place == number]) for number in np.unique(place)]


def _bin(chance: Values, truth: Values) -> Bin:
    mean = float(chance.mean())
    return Bin(mean, share_of(f"right where {mean:.2f} is predicted", truth))


def _bin_of(chance: Values, low: float, bins: int) -> NDArray[np.int64]:
    """[..., n]: the bin of each chance; 1 is in the last."""
    return np.minimum((chance - low) / (1 - low) * bins, bins - 1).astype(np.int64)


def calibration_error(
    predicted: Values, came_true: Values, *, low: float = 0.0, bins: int = BINS
) -> Any:
    """[...]: expected calibration error (Guo et al. 2017, arXiv:1706.04599, eq. 3).

    The mean distance of predicted and observed over the bins, each weighed by its examples; 0 is
    best. Noise alone makes it positive: more so with few examples a bin.

    Args:
        predicted: [..., n], chances from `low` to 1.
        came_true: [..., n], 1, 0, or a half.
        low: the lowest chance there can be; 0.5 for pairs.
        bins: of equal width between `low` and 1.
    """
    place = _bin_of(predicted, low, bins)
    apart = came_true - predicted
    sums = (abs((apart * (place == number)).sum(-1)) for number in range(bins))
    return sum(sums) / predicted.shape[-1]

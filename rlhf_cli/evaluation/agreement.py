"""Agreement of raters on categories: proportion, Cohen's κ and Krippendorff's α."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.evaluation.intervals import Estimate, Values, bootstrap_interval, wilson_interval

MISSING = -1
"""Code of an item that a rater has not decided."""


def raw_agreement(one: NDArray[Any], other: NDArray[Any]) -> Estimate:
    """Proportion of items on which two raters agree, with Wilson's interval.

    Args:
        one: [n], code of the category that the first rater chose for each item.
        other: [n], that of the second.
    """
    return wilson_interval(int((one == other).sum()), len(one))


def kappa(one: Values, other: Values) -> Any:
    """Cohen's κ (Cohen 1960, Educational and Psychological Measurement 20:37).

    Agreement above what two raters with these frequencies of categories have by chance: 1 is full
    agreement, 0 is chance.

    Args:
        one: [..., n], code of the category that the first rater chose for each item.
        other: [..., n], that of the second.

    Returns:
        [...]; NaN where both raters chose one and the same category for all items.
    """
    categories = np.unique(np.concatenate([one.ravel(), other.ravel()]))
    observed = (one == other).mean(-1)
    expected = sum((one == c).mean(-1) * (other == c).mean(-1) for c in categories)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)


def cohen_kappa(one: NDArray[Any], other: NDArray[Any], seed: int = 0) -> Estimate:
    """Cohen's κ with its bootstrap interval over items; see `kappa`."""
    return bootstrap_interval(kappa, one, other, seed=seed)


def alpha(*raters: Values) -> Any:
    """Krippendorff's α for nominal categories.

    1 minus the observed disagreement over that expected by chance (Krippendorff 2011, "Computing
    Krippendorff's Alpha-Reliability"). Raters may have left out items: items with one decision are
    ignored.

    Args:
        raters: [..., n] for each rater, the code of the category of each item, or `MISSING`.

    Returns:
        [...]; NaN where no item has two decisions, or all decisions are the same.
    """
    codes = np.stack(raters, -1)
    categories = [c for c in np.unique(codes) if c != MISSING]
    counts = np.stack([(codes == c).sum(-1) for c in categories], -1).astype(np.float64)
    decisions = counts.sum(-1, keepdims=True)
    counts = np.where(decisions > 1, counts, 0.0)
    decisions = counts.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        pairs = counts.sum(-1) ** 2 - (counts**2).sum(-1)  # ordered pairs that disagree
        observed = np.where(decisions > 1, pairs / (decisions - 1), 0.0).sum(-1)
        totals = counts.sum(-2)
        everything = totals.sum(-1)
        expected = (everything**2 - (totals**2).sum(-1)) / (everything - 1)
        return np.where(expected > 0, 1 - observed / expected, np.nan)


def krippendorff_alpha(raters: list[NDArray[Any]], seed: int = 0) -> Estimate:
    """Krippendorff's α with its bootstrap interval over items; see `alpha`."""
    return bootstrap_interval(alpha, *raters, seed=seed)


def confusion(one: NDArray[Any], other: NDArray[Any], categories: int) -> NDArray[np.int64]:
    """Count of items by the categories of two raters, [C, C]: rows are those of the first."""
    counts = np.zeros((categories, categories), np.int64)
    np.add.at(counts, (one, other), 1)
    return counts

"""How well scores order a policy's own responses: best of n, spread, noise, length.

Matrices are [..., P, K]: K responses to each of P prompts. Statistics keep the leading axes, so
that a bootstrap can resample whole prompts, whose responses are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rlhf_cli.evaluation.intervals import Estimate, Values, bootstrap_interval
from rlhf_cli.evaluation.metrics import spearman

RESAMPLES = 1000


def estimate_by_prompt(
    statistic: Callable[..., Any], *matrices: ArrayLike, seed: int = 0
) -> Estimate:
    """Statistic of matrices with its bootstrap interval over prompts.

    Args:
        statistic: [..., P, K] each -> [...].
        matrices: [P, K] each.
        seed: seed of the resamples.
    """
    given = [np.asarray(matrix, np.float64) for matrix in matrices]

    def of_prompts(numbers: Values) -> Any:
        chosen = numbers.astype(np.intp)
        return statistic(*(matrix[chosen] for matrix in given))

    prompts = np.arange(len(given[0]))
    return bootstrap_interval(of_prompts, prompts, seed=seed, resamples=RESAMPLES)


def kl_of_best_of_n(n: int) -> float:
    """Upper bound of the KL divergence of best of n from the policy, nats: log n - (n - 1) / n.

    Stiennon et al. 2020 (arXiv:2009.01325, G.3); a bound, not the value, where responses repeat
    (Beirami et al. 2024, arXiv:2401.01879).
    """
    return math.log(n) - (n - 1) / n


def best_of_n(scores: ArrayLike, values: ArrayLike) -> Values:
    """Expected value of the response with the highest score among n, [P, K], n = 1 to K.

    Unbiased: the mean over all subsets of n of the K responses, the estimator of Nakano et al.
    2021 (arXiv:2112.09332, appendix I). Of equal scores each is chosen as often.

    Args:
        scores: [P, K], which choose.
        values: [P, K], of the chosen response.
    """
    by, value = np.asarray(scores, np.float64), np.asarray(values, np.float64)
    count = by.shape[-1]
    # P(the i-th lowest of K is the highest of n) = C(i - 1, n - 1) / C(K, n)
    weights = np.array(
        [
            [math.comb(i, n - 1) / math.comb(count, n) for i in range(count)]
            for n in range(1, count + 1)
        ]
    )
    order = by.argsort(-1, kind="stable")
    shared = _mean_of_ties(np.take_along_axis(by, order, -1), np.take_along_axis(value, order, -1))
    found: Values = shared @ weights.T
    return found


def _mean_of_ties(sorted_scores: Values, values: Values) -> Values:
    """Values [P, K], each replaced by the mean over the responses with its score."""
    found = values.copy()
    for row, own in zip(sorted_scores, found, strict=True):
        _, group = np.unique(row, return_inverse=True)
        own[:] = (np.bincount(group, own) / np.bincount(group))[group]
    return found


def pairs_in_order(scores: ArrayLike, values: ArrayLike) -> tuple[Values, Values]:
    """Pairs of responses to a prompt that scores order as the values do, and all pairs, [P] each.

    Equal values make no pair, equal scores count half.

    Args:
        scores: [P, K].
        values: [P, K], of a judge.
    """
    by, value = np.asarray(scores, np.float64), np.asarray(values, np.float64)
    first, second = np.triu_indices(by.shape[-1], 1)
    wanted = np.sign(value[..., first] - value[..., second])
    given = np.sign(by[..., first] - by[..., second])
    right = np.where(wanted != 0, (1 + wanted * given) / 2, 0)
    return right.sum(-1), (wanted != 0).sum(-1).astype(np.float64)


def judged_pairs(scores: ArrayLike, values: ArrayLike) -> tuple[Values, Values]:
    """Scores of the better and of the worse response of each pair of a prompt, [n] each.

    Args:
        scores: [P, K].
        values: [P, K], which say what is better; equal ones make no pair.
    """
    by, value = np.asarray(scores, np.float64), np.asarray(values, np.float64)
    first, second = np.triu_indices(by.shape[-1], 1)
    signs = np.sign(value[:, first] - value[:, second])
    one, other = by[:, first], by[:, second]
    better, worse = np.where(signs > 0, one, other), np.where(signs > 0, other, one)
    return better[signs != 0], worse[signs != 0]


def center(values: ArrayLike) -> Values:
    """Values minus the mean of their prompt, [..., P, K]."""
    given = np.asarray(values, np.float64)
    found: Values = given - given.mean(-1, keepdims=True)
    return found


def spread(scores: ArrayLike) -> float:
    """Standard deviation of scores within prompts."""
    given = np.asarray(scores, np.float64)
    return float(np.sqrt(given.var(-1, ddof=1).mean()))


def order_noise(scores: ArrayLike, changed: ArrayLike) -> float:
    """Root mean square change of scores, without what all responses to a prompt have in common.

    Args:
        scores: [P, K].
        changed: [P, K], of the same responses after a change that should not matter.
    """
    difference = np.asarray(changed, np.float64) - np.asarray(scores, np.float64)
    return spread(difference)


def correlation_within_prompts(first: ArrayLike, second: ArrayLike) -> Any:
    """Rank correlation over all responses, after the mean of each prompt is subtracted; [...]."""
    return spearman(_flat(center(first)), _flat(center(second)))


def partial_correlation(first: ArrayLike, second: ArrayLike, third: ArrayLike) -> Any:
    """Rank correlation of the first two within prompts, given the third; [...].

    NaN where the third determines one of the others.
    """
    one = correlation_within_prompts(first, second)
    by_first = correlation_within_prompts(first, third)
    by_second = correlation_within_prompts(second, third)
    rest = (1 - by_first**2) * (1 - by_second**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(rest > 1e-9, (one - by_first * by_second) / np.sqrt(rest), np.nan)


def _flat(values: Values) -> Values:
    flat: Values = values.reshape(*values.shape[:-2], -1)
    return flat

"""Statistics of scores of several responses to each prompt."""

import itertools
import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from rlhf_cli.evaluation.reward_quality import (
    best_of_n,
    correlation_within_prompts,
    estimate_by_prompt,
    judged_pairs,
    kl_of_best_of_n,
    order_noise,
    pairs_in_order,
    partial_correlation,
    spread,
)

RNG = np.random.default_rng(0)


def test_best_of_n_is_the_mean_over_all_subsets():
    scores, values = RNG.normal(size=(3, 5)), RNG.normal(size=(3, 5))
    found = best_of_n(scores, values)
    for prompt, n in itertools.product(range(3), range(1, 6)):
        subsets = list(itertools.combinations(range(5), n))
        chosen = [max(subset, key=lambda i: scores[prompt, i]) for subset in subsets]
        assert_allclose(found[prompt, n - 1], values[prompt, chosen].mean(), rtol=1e-12)


def test_equal_scores_are_chosen_equally_often():
    found = best_of_n([[1.0, 1.0, 0.0]], [[3.0, 5.0, 100.0]])
    assert_allclose(found, [[36, (4 + 4 + 4) / 3, 4]])
    assert_allclose(best_of_n([[0.0] * 4], [[1, 2, 3, 4]]), [[2.5] * 4])


def test_kl_of_best_of_one_is_zero():
    assert kl_of_best_of_n(1) == 0
    assert kl_of_best_of_n(4) == pytest.approx(math.log(4) - 0.75)


def test_pairs_in_order_count_ties_half_and_skip_equal_values():
    right, pairs = pairs_in_order([[1, 2, 2], [3, 1, 2]], [[1, 2, 3], [0, 0, 1]])
    assert right.tolist() == [2.5, 1]  # 1<2, 1<2, tie; 3>2 is wrong, 1<2 right
    assert pairs.tolist() == [3, 2]


def test_judged_pairs_put_the_better_first():
    better, worse = judged_pairs([[1, 2, 5]], [[7, 3, 7]])
    assert (better.tolist(), worse.tolist()) == ([1, 5], [2, 2])


def test_noise_ignores_what_all_responses_to_a_prompt_have_in_common():
    scores = RNG.normal(size=(4, 6))
    assert order_noise(scores, scores + RNG.normal(size=(4, 1))) == pytest.approx(0, abs=1e-12)
    assert order_noise(np.zeros((1, 2)), [[1.0, -1.0]]) == pytest.approx(math.sqrt(2))
    assert spread(scores) == pytest.approx(math.sqrt(scores.var(1, ddof=1).mean()))


def test_correlation_is_within_prompts():
    length = RNG.normal(size=(50, 4))
    easy = 100 * RNG.normal(size=(50, 1))  # differs by prompt only
    assert correlation_within_prompts(length + easy, length) == pytest.approx(1)
    mixed = correlation_within_prompts(RNG.normal(size=(50, 4)) + easy, length + easy)
    assert abs(mixed) < 0.2


def test_partial_correlation_removes_what_the_third_explains():
    judge = RNG.normal(size=(400, 4))
    scores, length = judge + RNG.normal(size=(400, 4)), judge + RNG.normal(size=(400, 4))
    assert correlation_within_prompts(scores, length) > 0.4
    assert abs(partial_correlation(scores, length, judge)) < 0.07  # 2 standard errors of 1600
    assert math.isnan(partial_correlation(judge, length, judge))


def test_intervals_resample_whole_prompts():
    """Responses of a prompt that are all equal are worth one response."""
    values = np.repeat(RNG.normal(size=(30, 1)), 8, axis=1)
    found = estimate_by_prompt(lambda v: v.mean((-2, -1)), values)
    width = 2 * 1.96 * values[:, 0].std() / math.sqrt(30)
    assert found.high - found.low == pytest.approx(width, rel=0.15)  # of 1000 resamples
    assert found.n == 30

import math

import numpy as np
import pytest

from rlhf_cli.evaluation.intervals import (
    VALUES_AT_ONCE,
    Measurement,
    bootstrap_interval,
    mean,
    mean_difference,
    pooled_proportion,
    proportion,
    ratio_of_sums,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # z = 1.96; (s + z^2/2 -+ z sqrt(s (n - s) / n + z^2/4)) / (n + z^2)
        (8, 10, 0.49016, 0.94332),
        (0, 10, 0.0, 0.27753),
        (10, 10, 0.72247, 1.0),
        (50, 100, 0.40383, 0.59617),
        (2.5, 5, 0.17042, 0.82958),
    ],
)
def test_wilsons_interval(successes, n, low, high):
    found = wilson_interval(successes, n)
    assert (found.value, found.n) == (successes / n, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-5)


def test_no_examples_have_no_share():
    assert math.isnan(wilson_interval(0, 0).value)


def test_the_interval_of_a_mean_is_about_two_standard_errors():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    found = bootstrap_interval(mean, values)
    error = values.std() / 20
    assert found.value == values.mean()
    assert (found.low, found.high) == pytest.approx(
        (found.value - 1.96 * error, found.value + 1.96 * error), abs=0.1 * error
    )


def test_the_interval_holds_the_true_mean_nineteen_times_of_twenty():
    rng = np.random.default_rng(2)
    found = [bootstrap_interval(mean, rng.exponential(size=80), resamples=400) for _ in range(300)]
    held = sum(one.low <= 1.0 <= one.high for one in found) / len(found)
    assert 0.90 <= held <= 0.98  # nominally 0.95; the percentile interval of skewed data has less


def test_a_ratio_is_of_sums_and_its_examples_are_drawn_whole():
    nll, tokens = np.array([2.0, 30.0, 4.0]), np.array([1.0, 10.0, 4.0])
    found = bootstrap_interval(ratio_of_sums, nll, tokens)
    assert found.value == 36 / 15
    assert 1.0 <= found.low < found.value < found.high <= 3.0  # of one example alone


def test_draws_are_those_of_the_seed_whatever_is_computed_at_once():
    values = np.random.default_rng(3).normal(size=VALUES_AT_ONCE // 64)
    plain = bootstrap_interval(mean, values, seed=5, resamples=130)
    rng = np.random.default_rng(5)
    drawn = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(130)]
    assert (plain.low, plain.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist())
    assert bootstrap_interval(mean, values, seed=5, resamples=130) == plain
    assert bootstrap_interval(mean, values, seed=6, resamples=130) != plain


def test_paired_columns_stay_paired():
    rng = np.random.default_rng(4)
    own, gain = rng.normal(size=200), rng.normal(0.5, 0.01, size=200)
    found = bootstrap_interval(mean_difference, own + gain, own)
    assert (found.low, found.high) == pytest.approx((0.5, 0.5), abs=0.01)


def test_one_example_has_a_value_and_no_interval():
    found = bootstrap_interval(mean, [3.0])
    assert (found.value, found.n) == (3.0, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_equal_values_have_no_interval():
    assert math.isnan(bootstrap_interval(mean, [0.0] * 50).low)


def test_draws_without_a_value_do_not_count():
    found = bootstrap_interval(ratio_of_sums, [0.0, 3.0, 4.0], [0.0, 1.0, 1.0])
    assert (found.low, found.high) == (3.0, 4.0)


def test_no_examples_have_no_value():
    found = Measurement("loss", ([],)).estimate()
    assert (found.n, math.isnan(found.value)) == (0, True)


def test_a_share_of_examples_has_wilsons_interval():
    assert proportion("accuracy", [1, 1, 0, 1, 0.5]).estimate() == wilson_interval(3.5, 5)


def test_a_share_of_tokens_has_a_bootstraps_interval_save_at_its_ends():
    inside = pooled_proportion("accuracy", [1, 5, 3], [2, 5, 4])
    assert inside.estimate() == bootstrap_interval(ratio_of_sums, [1, 5, 3], [2, 5, 4])
    assert pooled_proportion("accuracy", [2, 5, 4], [2, 5, 4]).estimate() == wilson_interval(3, 3)
    assert pooled_proportion("accuracy", [0, 0, 0], [2, 5, 4]).estimate() == wilson_interval(0, 3)

"""Weighted statistics of benchmarks/real, against repeated rows and the package's own functions."""

import numpy as np
import pytest

from benchmarks.real.intervals import auc, interval, less, mean
from benchmarks.real.table import right, units
from rlhf_cli.evaluation import intervals, metrics

RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=60).round(1)  # rounded, so that some are equal
LABELS = RNG.random(60) < 0.4


def test_a_weight_is_how_often_a_row_stands_in_the_sample():
    weights = RNG.integers(0, 4, 60)
    repeated = VALUES.repeat(weights)
    assert mean(VALUES)(weights) == pytest.approx(repeated.mean())
    expected = metrics.auc(repeated, LABELS.repeat(weights))
    assert auc(VALUES, LABELS)(weights.astype(float)) == pytest.approx(expected)


def test_rows_with_nothing_in_common_have_the_interval_of_the_plain_bootstrap():
    found = interval(mean(VALUES), [[f"{row:02}"] for row in range(60)])
    plain = intervals.bootstrap_interval(intervals.mean, VALUES)
    assert (found.value, found.low, found.high) == pytest.approx(
        (plain.value, plain.low, plain.high)
    )


def test_four_copies_of_each_row_make_an_interval_no_narrower():
    once = interval(mean(VALUES), [[f"{row:02}"] for row in range(60)])
    copies = interval(mean(VALUES.repeat(4)), [[f"{row // 4:02}"] for row in range(240)])
    assert (copies.low, copies.high) == pytest.approx((once.low, once.high))
    assert copies.n == 240


def test_a_pair_counts_as_often_as_both_of_its_units_are_drawn():
    # units a, b, c; only the pair (a, b) has the value 1, so the mean is n_a n_b over all products
    values = np.array([1.0, 0.0, 0.0])
    found = interval(mean(values), [["a", "b"], ["b", "c"], ["a", "c"]])
    assert found.value == pytest.approx(1 / 3)
    assert (found.low, found.high) == (0.0, 1.0)


def test_a_difference_is_taken_over_the_same_draws():
    found = interval(less(mean(VALUES + 0.25), mean(VALUES)), [[str(row)] for row in range(60)])
    assert (found.low, found.high) == pytest.approx((0.25, 0.25))


def test_what_rows_share_is_read_from_their_names():
    pair = {"id": "tv_tv/arg1_arg2", "margin": 1.0}
    assert units(pair) == ["tv_tv/arg1", "tv_tv/arg2"]
    assert units({"id": "gsm8k/test/00791/6b_finetuning"}) == ["gsm8k/test/00791"]
    assert units({"id": "helpful-base/test/01"}) == ["helpful-base/test/01"]


def test_equal_values_are_half_right():
    assert right(np.array([[2.0, 1.0], [1.0, 2.0], [1.0, 1.0]])).tolist() == [1.0, 0.0, 0.5]

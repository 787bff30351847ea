"""Agreement of raters against sklearn and worked examples."""

import math

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from rlhf_cli.evaluation.agreement import (
    MISSING,
    alpha,
    cohen_kappa,
    confusion,
    kappa,
    krippendorff_alpha,
    raw_agreement,
)


def test_kappa_is_that_of_sklearn_also_for_resamples():
    rng = np.random.default_rng(0)
    one, other = rng.integers(3, size=(2, 4, 50))
    found = kappa(one, other)
    for row in range(4):
        assert found[row] == pytest.approx(cohen_kappa_score(one[row], other[row]), abs=1e-12)


def test_kappa_by_hand():
    """20 and 15 of 50 agree on each of two categories (Wikipedia, Cohen's kappa): 0.4."""
    one = np.repeat([0, 0, 1, 1], [20, 5, 10, 15])
    other = np.repeat([0, 1, 0, 1], [20, 5, 10, 15])
    found = cohen_kappa(one, other)
    assert found.value == pytest.approx(0.4)
    assert 0.1 < found.low < 0.4 < found.high < 0.7
    assert raw_agreement(one, other).value == pytest.approx(0.7)
    assert confusion(one, other, 2).tolist() == [[20, 5], [10, 15]]


def test_kappa_of_one_category_is_not_defined():
    same = np.zeros(5)
    assert math.isnan(kappa(same, same))
    assert math.isnan(cohen_kappa(same, same).low)


def test_alpha_of_the_worked_example_of_krippendorff():
    """Krippendorff 2011, section C: nominal data of four observers with missing values, 0.743."""
    rows = (
        "1 2 3 3 2 1 4 1 2 . . .",
        "1 2 3 3 2 2 4 1 2 5 . 3",
        ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    )
    codes = [np.array([MISSING if c == "." else int(c) for c in row.split()]) for row in rows]
    assert alpha(*codes) == pytest.approx(0.743, abs=5e-4)
    found = krippendorff_alpha(codes)
    assert found.low < found.value < found.high
    assert alpha(*(np.stack([one, one]) for one in codes)).shape == (2,)


def test_alpha_of_two_raters_is_near_kappa_and_of_equal_raters_is_one():
    rng = np.random.default_rng(1)
    one = rng.integers(2, size=400)
    other = np.where(rng.random(400) < 0.8, one, 1 - one)
    assert alpha(one, one) == 1
    assert alpha(one, other) == pytest.approx(kappa(one, other), abs=0.01)
    assert math.isnan(alpha(np.ones(3), np.ones(3)))

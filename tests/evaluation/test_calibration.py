from functools import partial

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from rlhf_cli.evaluation.intervals import bootstrap_interval
from rlhf_cli.evaluation.metrics import (
    expected_calibration_error,
    pair_confidence,
    reliability_curve,
)


def test_the_curve_is_sklearns():
    rng = np.random.default_rng(0)
    chance = rng.uniform(size=500)
    truth = rng.uniform(size=500) < chance**2
    observed, predicted = calibration_curve(truth, chance, n_bins=10)
    found = reliability_curve(chance, truth)
    assert [one.predicted for one in found] == pytest.approx(predicted.tolist())
    assert [one.observed.value for one in found] == pytest.approx(observed.tolist())
    assert sum(one.observed.estimate().n for one in found) == 500


def test_a_chance_of_one_is_in_the_last_bin():
    [low, high] = reliability_curve([0.5, 1.0], [0, 1], low=0.5, bins=5)
    assert (low.predicted, low.observed.value) == (0.5, 0.0)
    assert (high.predicted, high.observed.value) == (1.0, 1.0)


def test_a_pair_is_as_sure_as_its_margin_whoever_is_right():
    chance, right = pair_confidence([1.2, 0.3, 2.0], [0.3, 1.2, 2.0])
    assert chance == pytest.approx([0.710950, 0.710950, 0.5], abs=1e-6)  # sigmoid(0.9)
    assert right.tolist() == [1.0, 0.0, 0.5]


def test_the_calibration_error_by_hand():
    chance, truth = np.array([0.9, 0.9, 0.9, 0.9, 0.2]), np.array([1, 1, 1, 0, 0])
    assert expected_calibration_error(chance, truth) == pytest.approx(
        0.8 * abs(0.75 - 0.9) + 0.2 * 0.2
    )


def test_scores_that_are_log_odds_are_calibrated():
    rng = np.random.default_rng(1)
    margin = rng.normal(scale=2.0, size=20_000)
    better = rng.uniform(size=20_000) < 1 / (1 + np.exp(-margin))
    chosen = np.where(better, margin, -margin)  # each pair with its better response first
    right = expected_calibration_error(*pair_confidence(chosen, 0 * chosen), low=0.5)
    doubled = expected_calibration_error(*pair_confidence(2 * chosen, 0 * chosen), low=0.5)
    assert right < 0.01  # noise of 2,000 pairs a bin
    assert doubled > 0.05


def test_the_calibration_error_has_an_interval():
    chance, right = pair_confidence(np.linspace(-1, 3, 100), np.zeros(100))
    found = bootstrap_interval(partial(expected_calibration_error, low=0.5), chance, right)
    assert 0 < found.low < found.high < 1

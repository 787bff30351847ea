import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from rlhf_cli.evaluation.intervals import bootstrap_interval, wilson_interval
from rlhf_cli.evaluation.metrics import (
    Wins,
    accuracy_by_quantile,
    auc,
    count_wins,
    length_baselines,
    length_warning,
    pearson,
    preference_accuracy,
    spearman,
)

RNG = np.random.default_rng(0)
TIED = RNG.integers(0, 6, size=(4, 50)).astype(float)
LABELS = RNG.integers(0, 2, size=(4, 50))


def test_ties_are_measured_where_there_are_any():
    found = preference_accuracy([2.0, 1.0, 0.5, 0.5], [1.0, 2.0, 0.5, 0.0])
    assert {one.metric: one.estimate() for one in found} == {
        "accuracy": wilson_interval(2, 4),
        "ties": wilson_interval(1, 4),
        "accuracy, ties as half": wilson_interval(2.5, 4),
    }
    assert [one.metric for one in preference_accuracy([2.0], [1.0])] == ["accuracy"]


def test_a_constant_score_is_never_right():
    found = preference_accuracy(np.ones(5), np.ones(5))
    assert [one.value for one in found] == [0.0, 1.0, 0.5]


def test_the_baselines_of_length_mirror_each_other():
    found = length_baselines([5, 7, 3, 4], [2, 9, 3, 1])
    assert {one.metric: one.value for one in found} == {
        "always the longer": 2.5 / 4,
        "always the shorter": 1.5 / 4,
    }


def test_spearman_by_hand_with_ties_that_share_their_mean_rank():
    """Ranks 3.5 1 3.5 2 against 1 2 3 4: centered product -1, squares 4.5 and 5."""
    assert spearman([3.0, 1.0, 3.0, 2.0], [1, 2, 3, 4]) == pytest.approx(-1 / math.sqrt(4.5 * 5))


def test_auc_by_hand():
    assert auc([0.9, 0.8, 0.4, 0.4], [1, 0, 1, 0]) == (1 + 1 + 0 + 0.5) / 4


def test_auc_is_sklearns_along_the_last_axis():
    expected = [roc_auc_score(label, score) for label, score in zip(LABELS, TIED, strict=True)]
    np.testing.assert_allclose(auc(TIED, LABELS), expected, rtol=1e-12)


def test_auc_of_one_class_is_not_defined():
    assert math.isnan(auc([1.0, 2.0], [1, 1]))


def test_auc_has_an_interval():
    found = bootstrap_interval(auc, TIED[0], LABELS[0])
    assert found.low < found.value < found.high


def test_correlations_are_numpys_and_scipys():
    for one, other in zip(TIED, TIED[::-1] ** 3, strict=True):
        assert pearson(one, other) == pytest.approx(np.corrcoef(one, other)[0, 1])
        assert spearman(one, other) == pytest.approx(stats.spearmanr(one, other).statistic)
    assert math.isnan(pearson([1.0, 1.0], [1.0, 2.0]))


def test_a_score_that_follows_length_is_warned_of():
    assert "longer" in length_warning(0.51)
    assert "shorter" in length_warning(-0.9)
    assert [length_warning(value) for value in (0.5, -0.2, math.nan)] == ["", "", ""]


def test_buckets_have_about_equal_sizes_and_never_part_equal_values():
    values, right = np.arange(8.0), np.array([1, 0, 1, 1, 1, 1, 1, 0.5])
    found = accuracy_by_quantile("margin", values, right, 4)
    names = ["margin 0 to 1", "margin 2 to 3", "margin 4 to 5", "margin 6 to 7"]
    assert [one.metric for one in found] == names
    assert [one.estimate() for one in found] == [wilson_interval(s, 2) for s in (1, 2, 2, 1.5)]
    uneven = accuracy_by_quantile("margin", [0, 0, 0, 0, 0, 1], [1, 1, 0, 0, 1, 1], 4)
    assert [(one.metric, one.estimate().n) for one in uneven] == [
        ("margin 0 to 0", 5),
        ("margin 1 to 1", 1),
    ]
    assert accuracy_by_quantile("margin", [], [], 4) == []


def test_a_win_rate_leaves_ties_out():
    found = count_wins([3, 2, 5, 1, 1], [1, 2, 4, 1, 2])
    assert found == Wins(wins=2, losses=1, ties=2)
    assert found.rate == wilson_interval(2, 3)
    assert math.isnan(count_wins([1], [1]).rate.value)

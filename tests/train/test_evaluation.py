"""Intervals of held-out metrics: whole examples are resampled."""

import numpy as np
import pytest
import torch

from rlhf_cli.evaluation.intervals import Measurement, bootstrap_interval, mean, proportion
from rlhf_cli.losses.reduction import LossOutput, LossTerm, mean_metric
from rlhf_cli.train.evaluation import _bootstrap, from_measurements
from rlhf_cli.train.row_loss import RowLoss


def pair_loss() -> RowLoss:
    """Loss of pairs: the mean of first minus second."""

    def loss(values):
        apart = values["score"][0::2] - values["score"][1::2]
        return LossOutput(
            {"pairs": LossTerm(apart.sum(), "examples")},
            {"right": mean_metric((apart > 0).float())},
        )

    return RowLoss(lambda rows: {}, loss)


def test_pairs_stay_together_and_the_interval_is_that_of_their_differences():
    rng = np.random.default_rng(1)
    second = rng.normal(size=50) * 100
    apart = rng.normal(0.5, 1.0, size=50)
    score = torch.tensor(np.stack([second + apart, second], axis=1).ravel())
    starts = np.arange(0, 101, 2)
    found = _bootstrap(pair_loss(), {"score": score}, {"examples": 50.0}, starts)
    expected = bootstrap_interval(mean, apart)
    assert found["loss"] == pytest.approx([expected.low, expected.high], abs=0.05)
    assert found["right"][0] < float((apart > 0).mean()) < found["right"][1]


def test_a_metric_that_never_varies_has_no_interval():
    score = torch.tensor([1.0, 0.0] * 8)
    found = _bootstrap(pair_loss(), {"score": score}, {"examples": 8.0}, np.arange(0, 17, 2))
    assert found == {}


def test_measurements_give_values_and_intervals():
    found = from_measurements([proportion("ended", [1, 1, 0, 1]), Measurement("one", ([2.0],))])
    assert found.values == {"ended": 0.75, "one": 2.0}
    assert found.intervals()["ended"] == pytest.approx([0.3006, 0.9544], abs=1e-4)  # Wilson's
    assert "one" not in found.intervals()

"""PPO's pieces against the worked example and by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.losses.advantages import gae, grpo_advantages, rloo_advantages, whiten
from rlhf_cli.losses.kl import KLController, approximate_kl, kl_estimate
from rlhf_cli.losses.policy import RatioClip, clipped_surrogate, importance_log_ratio
from rlhf_cli.losses.value import value_loss


def table(*rows):
    return torch.tensor(rows, dtype=torch.float64)


LOGP = table([-1, -0.5, -0.2, 0, 0], [-0.3, -0.6, -0.9, -1.2, -1.5])
REF = table([-1.2, -0.4, -0.5, 0, 0], [-0.5, -0.5, -1, -1, -1.4])
VALUES = table([0.1, 0.2, 0.3, 0.4, 0.5], [0, 0.1, 0.2, 0.3, 0.4])
MASK = torch.tensor([[True, True, True, False, False], [True] * 5])
TRL_MASK = torch.tensor([[True, True, True, True, False], [True] * 5])
SCORES = table([1, -1.5])  # the second has lost a point: it did not end


A, ROW = table([1.0, -2.0, 0.5])[0], torch.tensor([0, 1, 1])


def close(actual, *rows):
    assert_close(actual, table(*rows), atol=6e-6, rtol=0)


def shaped(position):
    kl = kl_estimate(LOGP, REF, "k1") * MASK
    rewards = -0.05 * kl
    rewards[torch.arange(2), torch.tensor(position)] += SCORES[0]
    return rewards


def test_the_worked_example_with_the_score_at_the_last_token():
    rewards = shaped([2, 4])
    close(rewards, [-0.01, 0.005, 0.985, 0, 0], [-0.01, 0.005, -0.005, 0.01, -1.495])
    advantages, returns = gae(rewards, VALUES, MASK, gamma=1.0, gae_lambda=0.95)
    second = [-1.17369, -1.33020, -1.51074, -1.69025, -1.89500]
    close(advantages, [0.80796, 0.75575, 0.68500, 0, 0], second)
    close(
        returns,
        [0.90796, 0.95575, 0.98500, 0, 0],
        [-1.17369, -1.23020, -1.31074, -1.39025, -1.49500],
    )
    close(
        whiten(advantages, MASK),
        [1.23618, 1.19248, 1.13326, 0, 0],
        [-0.42253, -0.55353, -0.70465, -0.85491, -1.02629],
    )


def test_the_worked_example_as_trl_places_the_score():
    rewards = shaped([3, 4])
    close(rewards, [-0.01, 0.005, -0.015, 1, 0], [-0.01, 0.005, -0.005, 0.01, -1.495])
    advantages, returns = gae(rewards, VALUES, TRL_MASK, gamma=1.0, gae_lambda=0.95)
    close(advantages[:1], [0.78089, 0.72725, 0.65500, 0.60000, 0])
    close(returns[:1], [0.88089, 0.92725, 0.95500, 1, 0])
    close(
        whiten(advantages, MASK),
        [1.23748, 1.19203, 1.13081, 0, 0],
        [-0.41865, -0.55127, -0.70424, -0.85634, -1.02983],
    )


def test_estimates_of_the_kl():
    close(kl_estimate(LOGP, REF, "k3")[:1], [0.01873, 0.00517, 0.04082, 0, 0])
    close(kl_estimate(LOGP, REF, "k2")[:1], [0.02, 0.005, 0.045, 0, 0])
    assert (kl_estimate(LOGP, REF, "k3") >= 0).all()


def test_the_adaptive_coefficient_by_hand():
    controller = KLController(0.2, target=6, horizon=10_000)
    for kl, expected in ((3, 0.198976), (6.6, 0.199485), (12, 0.200507)):
        controller.update(kl, 256)
        assert controller.value == pytest.approx(expected, abs=6e-7)
    fixed = KLController(0.05)
    fixed.update(100, 256)
    assert fixed.value == 0.05


def test_whitening_has_mean_0_and_variance_1_on_the_mask():
    torch.manual_seed(0)
    values, mask = torch.randn(5, 7, dtype=torch.float64) * 3 + 2, torch.rand(5, 7) > 0.4
    white = whiten(values, mask)
    assert float(white[mask].mean()) == pytest.approx(0, abs=1e-9)
    assert float(white[mask].var()) == pytest.approx(1, abs=1e-7)
    assert not white[~mask].any()
    kept = whiten(values, mask, keep_mean=True)
    assert_close(kept[mask].mean(), values[mask].mean())


def test_whitening_equal_values_divides_by_nothing():
    assert not whiten(torch.full((2, 3), 7.0), torch.ones(2, 3, dtype=torch.bool)).any()


def test_advantages_of_groups():
    scores = table([1, 0, 0, 1, 0.5])
    assert_close(grpo_advantages(scores), table([1, -1, -1, 1, 0]) * 0.99980, atol=1e-5, rtol=0)
    assert_close(rloo_advantages(scores), table([0.625, -0.625, -0.625, 0.625, 0]))


def test_the_clipped_surrogate_by_hand():
    logp = torch.tensor([math.log(1.5), math.log(1.5), math.log(0.5), 0.0])
    advantage = torch.tensor([2.0, -2.0, -1.0, 3.0])
    losses = clipped_surrogate(logp, advantage, RatioClip(0.2, 0.2))
    assert_close(losses, torch.tensor([-2.4, 3.0, 0.8, -3.0]))


def test_the_clipped_value_loss_by_hand():
    value, old, target = table([1.0, 1.0]), table([0.0, 0.9]), table([1.5, 0.0])
    assert_close(value_loss(value, old, target, 0.2), table([0.5 * 1.3**2, 0.5]))


def test_an_update_that_has_not_moved():
    logp = torch.randn(4)
    assert not approximate_kl(logp, logp).any()
    advantage = torch.randn(4)
    losses = clipped_surrogate(logp - logp, advantage, RatioClip(0.2, 0.2))
    assert_close(losses, -advantage)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, other: clipped_surrogate(x - other, A, RatioClip(10.0, 10.0, dual=30.0)),
        lambda x, other: importance_log_ratio(x - other, ROW, 2, "sequence").exp() * A,
        lambda x, other: value_loss(x, other, A, 10.0),
        lambda x, other: kl_estimate(x, other, "k3"),
    ],
)
def test_gradients(loss):
    torch.manual_seed(0)
    x, other = torch.randn(3, dtype=torch.float64, requires_grad=True), torch.randn(3).double()
    assert torch.autograd.gradcheck(lambda x: loss(x, other), x)

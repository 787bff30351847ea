"""Policy losses: by hand, and against the formulas of TRL 1.16's GRPOTrainer."""

import math

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.losses.policy import (
    RatioClip,
    aggregation_weights,
    cispo_loss,
    clipped_surrogate,
    importance_log_ratio,
)


def logs(*ratios):
    return torch.tensor([math.log(ratio) for ratio in ratios], dtype=torch.float64)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_upper_clip_range_by_hand():
    """Ratio 1.25 is beyond 1.2 and within 1.28; below, both clip at 0.8."""
    log_ratio, advantage = logs(1.25, 1.5, 0.5), numbers(2, 2, -1)
    same = clipped_surrogate(log_ratio, advantage, RatioClip(0.2, 0.2))
    higher = clipped_surrogate(log_ratio, advantage, RatioClip(0.2, 0.28))
    assert_close(same, numbers(-2.4, -2.4, 0.8))
    assert_close(higher, numbers(-2.5, -2.56, 0.8))


def test_the_dual_clip_by_hand():
    """With A = -2 and c = 3 the loss is at most 6; a positive advantage is not concerned."""
    log_ratio, advantage = logs(2.0, 5.0, 5.0), numbers(-2, -2, 1)
    log_ratio.requires_grad_()
    losses = clipped_surrogate(log_ratio, advantage, RatioClip(0.2, 0.2, dual=3.0))
    assert_close(losses.detach(), numbers(4, 6, -1.2))
    losses.sum().backward()
    assert_close(log_ratio.grad, numbers(4, 0, 0))


def test_where_the_ratio_is_outside_its_limits():
    clip = RatioClip(0.2, 0.28)
    assert clip.exceeded(numbers(0.79, 0.81, 1.27, 1.29)).tolist() == [True, False, False, True]


ROW = torch.tensor([0, 0, 1, 1, 1])
LOG_RATIO = numbers(0.1, 0.3, -0.3, 0.0, 0.6)


def test_the_ratio_of_a_sequence_is_the_geometric_mean_of_its_tokens():
    found = importance_log_ratio(LOG_RATIO, ROW, 2, "sequence")
    assert_close(found, numbers(0.2, 0.2, 0.1, 0.1, 0.1))
    assert importance_log_ratio(LOG_RATIO, ROW, 2, "token") is LOG_RATIO


def test_the_gradient_of_the_ratio_of_a_sequence():
    """`sequence` shares it among the tokens, `sequence_token` leaves it with each."""
    advantage = numbers(1, 1, -2, -2, -2)
    each = {}
    for level in ("sequence", "sequence_token"):
        log_ratio = LOG_RATIO.clone().requires_grad_()
        found = importance_log_ratio(log_ratio, ROW, 2, level)
        assert_close(found.detach(), numbers(0.2, 0.2, 0.1, 0.1, 0.1))
        (-advantage * found.exp()).sum().backward()
        each[level] = log_ratio.grad
    expected = -advantage * numbers(0.2, 0.2, 0.1, 0.1, 0.1).exp()
    assert_close(each["sequence_token"], expected)
    assert_close(each["sequence"], expected)  # as all tokens of a response have one advantage


def test_cispo_by_hand():
    """Ratios 0.5, 1.1 and 2 have the weights 0.5, 1.1 and 1.5, and log p their gradient."""
    logp = numbers(-1, -2, -3).requires_grad_()
    advantage = numbers(1, -1, 2)
    losses = cispo_loss(logp, logs(0.5, 1.1, 2.0), advantage, RatioClip(0.2, 0.5))
    assert_close(losses.detach(), numbers(0.5, -2.2, 9.0))
    losses.sum().backward()
    assert_close(logp.grad, numbers(-0.5, 1.1, -3.0))


def test_aggregation_weights_by_hand():
    lengths = torch.tensor([2, 4])
    losses = [torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0, 2.0, 4.0])]

    def reduced(kind, divisor):
        weights = aggregation_weights(lengths, kind, 10)
        return sum(float((of * w).sum()) for of, w in zip(losses, weights, strict=True)) / divisor

    assert reduced("token", 6) == pytest.approx(12 / 6)
    assert reduced("sequence", 2) == pytest.approx((2 + 2) / 2)
    assert reduced("constant", 2) == pytest.approx(12 / (2 * 10))


def trl_loss(logp, old, advantages, mask, loss_type, level, low, high, delta, most):
    """`GRPOTrainer._compute_loss` of TRL 1.16 with one micro-batch a step, without KL: [B, T]."""
    log_ratio = logp - old
    if level == "sequence":
        log_ratio = ((log_ratio * mask).sum(-1) / mask.sum(-1)).unsqueeze(-1)
    coef_1 = log_ratio.exp()
    if loss_type == "cispo":
        per_token = -coef_1.clamp(max=high).detach() * advantages * logp
    else:
        coef_2 = coef_1.clamp(1 - low, 1 + high)
        if delta:
            coef_1 = coef_1.clamp(max=delta)
        per_token = -torch.min(coef_1 * advantages, coef_2 * advantages)
    if loss_type == "grpo":
        return ((per_token * mask).sum(-1) / mask.sum(-1)).mean()
    if loss_type == "dr_grpo":
        return (per_token * mask).sum() / (len(mask) * most)
    return (per_token * mask).sum() / mask.sum()


AGGREGATION = {
    "grpo": "sequence",
    "bnpo": "token",
    "dapo": "token",
    "cispo": "token",
    "dr_grpo": "constant",
}


@pytest.mark.parametrize("delta", [0.0, 1.6])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", AGGREGATION)
def test_loss_and_gradient_are_those_of_trl(loss_type, level, delta):
    torch.manual_seed(0)
    lengths, most = torch.tensor([3, 5, 1]), 7
    mask = torch.arange(5) < lengths[:, None]
    old = torch.randn(3, 5, dtype=torch.float64) - 2
    moved = old + torch.randn(3, 5, dtype=torch.float64) * 0.5
    advantages = numbers(1.3, -0.7, -2)[:, None]
    theirs = moved.clone().requires_grad_()
    high = 1.3 if loss_type == "cispo" else 0.28  # of cispo TRL's is the limit itself
    expected = trl_loss(
        theirs, old, advantages, mask.double(), loss_type, level, 0.2, high, delta, most
    )
    expected.backward()

    ours = moved.clone().requires_grad_()
    row = torch.arange(3)[:, None].expand(3, 5)[mask]
    logp, advantage = ours[mask], advantages.expand(3, 5)[mask]
    log_ratio = importance_log_ratio(logp - old[mask], row, 3, level)
    if loss_type == "cispo":
        losses = cispo_loss(logp, log_ratio, advantage, RatioClip(0.2, high - 1))
    else:
        losses = clipped_surrogate(log_ratio, advantage, RatioClip(0.2, high, delta))
    kind = AGGREGATION[loss_type]
    weights = aggregation_weights(lengths, kind, most)[row]
    found = (losses * weights).sum() / (len(row) if kind == "token" else 3)
    found.backward()
    assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-7)

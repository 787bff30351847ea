"""Advantages of groups, penalties of lengths and the entropy controller, by hand."""

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.losses.advantages import gdpo_advantages, grpo_advantages, overlong_penalty
from rlhf_cli.losses.entropy import EntropyController


def table(*rows):
    return torch.tensor(rows, dtype=torch.float64)


SCORES = table([1, 0, 0, 1], [4, 4, 4, 0])


def test_group_advantages_without_scale():
    found = grpo_advantages(SCORES, "none")
    assert_close(found, table([0.5, -0.5, -0.5, 0.5], [1, 1, 1, -3]))


def test_group_advantages_over_the_deviation_of_the_batch():
    """Of 1 0 0 1 4 4 4 0 it is sqrt(25.5 / 7): mean 1.75, squares 50 - 8 * 1.75^2."""
    deviation = (25.5 / 7) ** 0.5 + 1e-4
    found = grpo_advantages(SCORES, "batch")
    assert_close(found, table([0.5, -0.5, -0.5, 0.5], [1, 1, 1, -3]) / deviation)
    given = grpo_advantages(SCORES[:1], "batch", all_scores=SCORES.flatten())
    assert_close(given, found[:1])


@pytest.mark.parametrize("scale", ["std", "none", "batch"])
def test_equal_scores_have_no_advantage(scale):
    equal = torch.full((2, 3), 0.7)
    assert not grpo_advantages(equal, scale).any()


def test_gdpo_tells_apart_what_the_sum_confuses():
    """Two rewards of 0 or 1: their sums are 1 0 1 2 and 2 0 0 2.

    Each reward has the deviation sqrt(1/3) within its group where half of its scores are 1.
    """
    scores = table([1, 0, 0, 1], [0, 0, 1, 1])[None].transpose(1, 2)  # [1, 4, 2]
    one = 0.5 / ((1 / 3) ** 0.5 + 1e-4)
    found = gdpo_advantages(scores, torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert_close(found, table([one - 2 * one, -one - 2 * one, -one + 2 * one, one + 2 * one]))


def test_a_reward_on_another_scale_counts_no_more():
    scores = table([1, 0, 0, 1], [0, 0, 1, 1])[None].transpose(1, 2)
    weights = torch.ones(2, dtype=torch.float64)
    scaled = scores * torch.tensor([1.0, 1000.0], dtype=torch.float64)
    assert_close(
        gdpo_advantages(scaled, weights), gdpo_advantages(scores, weights), rtol=0, atol=1e-3
    )


def test_the_overlong_penalty_by_hand():
    """Limit 10, buffer 4: 6 tokens cost nothing, 8 a half, 10 one."""
    found = overlong_penalty(torch.tensor([1, 6, 7, 8, 10, 12]), 10, 4)
    assert_close(found, torch.tensor([0, 0, -0.25, -0.5, -1, -1]))


def test_the_entropy_coefficient_by_hand():
    """Target 0.2: it rises below, falls above, where it does not act, and stays at 0 or more."""
    controller = EntropyController(0.0, target=0.2, step=0.01)
    found = [controller.observe(entropy) for entropy in (0.5, 0.1, 0.2, 0.3, 0.1)]
    assert found == pytest.approx([0.0, 0.0, 0.01, 0.0, 0.01])
    assert controller.value == pytest.approx(0.02)


def test_without_target_the_entropy_coefficient_is_fixed():
    controller = EntropyController(0.03)
    assert [controller.observe(entropy) for entropy in (0.0, 5.0)] == [0.03, 0.03]

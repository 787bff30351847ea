"""Token rewards and advantages against a worked example."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.distributed.ranks import SINGLE_PROCESS
from rlhf_cli.rewards.config import RewardsConfig
from rlhf_cli.rollout.response import Response
from rlhf_cli.stages.ppo.advantages import RolloutTensors, compute_advantages, has_signal
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.ppo.source import add_trailing_pads


def table(*rows):
    return torch.tensor(rows, dtype=torch.float64)


RESPONSE = torch.tensor([[True, True, True, False, False], [True] * 5])
RESPONSE_AND_PAD = torch.tensor([[True, True, True, True, False], [True] * 5])
SCORE = torch.tensor([1.0, -1.5], dtype=torch.float64)  # the second did not end: a point less


def example(valued, **changes):
    """The worked example; what comes after a response must not matter."""
    cfg = PPOConfig(reward=RewardsConfig(length_penalty=1), **changes)
    found = RolloutTensors(
        table([-1, -0.5, -0.2, 7, 7], [-0.3, -0.6, -0.9, -1.2, -1.5]),
        table([-1.2, -0.4, -0.5, 3, 3], [-0.5, -0.5, -1, -1, -1.4]),
        table([0.1, 0.2, 0.3, 0.4, 0.5], [0, 0.1, 0.2, 0.3, 0.4]),
        RESPONSE,
        valued,
        SCORE,
    )
    return compute_advantages(found, cfg, 0.05, SINGLE_PROCESS)


def close(actual, *rows):
    assert_close(actual, table(*rows), atol=6e-6, rtol=0)


def test_the_worked_example():
    found = example(RESPONSE)
    close(found.rewards, [-0.01, 0.005, 0.985, 0, 0], [-0.01, 0.005, -0.005, 0.01, -1.495])
    close(
        found.returns,
        [0.90796, 0.95575, 0.98500, 0, 0],
        [-1.17369, -1.23020, -1.31074, -1.39025, -1.49500],
    )
    close(
        found.advantages,
        [1.23618, 1.19248, 1.13326, 0, 0],
        [-0.42253, -0.55353, -0.70465, -0.85491, -1.02629],
    )
    close(found.kl, [0.2, -0.1, 0.3, 0, 0], [0.2, -0.1, 0.1, -0.2, -0.1])


def test_the_worked_example_with_compat_trl():
    found = example(RESPONSE_AND_PAD, compat="trl")
    close(found.rewards, [-0.01, 0.005, -0.015, 1, 0], [-0.01, 0.005, -0.005, 0.01, -1.495])
    close(found.returns[:1], [0.88089, 0.92725, 0.95500, 1, 0])
    close(
        found.advantages,
        [1.23748, 1.19203, 1.13081, 0, 0],
        [-0.41865, -0.55127, -0.70424, -0.85634, -1.02983],
    )


def test_the_longest_response_has_no_trailing_pad():
    ids, finished = [[5, 1], [6, 7, 1], [6, 7, 8]], [True, True, False]
    drawn = [Response(k, k, [3], ids[k], finished[k]) for k in range(3)]
    responses = add_trailing_pads(drawn, 0, SINGLE_PROCESS)
    assert [one.trailing_pad for one in responses] == [0, None, None]


def test_the_score_appears_once_in_each_response():
    found = example(RESPONSE, kl_in="loss")
    close(found.rewards, [0, 0, 1, 0, 0], [0, 0, 0, 0, -1.5])


@pytest.mark.parametrize("name", ["whiten_rewards", "whiten_advantages"])
def test_whitening_equal_scores_is_finite(name):
    responses = RolloutTensors(*[torch.zeros(2, 3)] * 3, *[torch.ones(2, 3) > 0] * 2, torch.ones(2))
    cfg = PPOConfig(gamma=0.0, reward=RewardsConfig(length_penalty=1), **{name: True})
    assert compute_advantages(responses, cfg, 0.0, SINGLE_PROCESS).advantages.isfinite().all()


def grouped(advantage, scores, samples=1, **changes):
    count = len(scores)
    zero, full = torch.zeros(count, 2), torch.ones(count, 2, dtype=torch.bool)
    found = RolloutTensors(zero, zero, zero, full, full, torch.tensor(scores), samples)
    cfg = PPOConfig(advantage=advantage, samples_per_prompt=samples, **changes)
    return compute_advantages(found, cfg, 0.05, SINGLE_PROCESS).advantages[:, 0]


@pytest.mark.parametrize("score", [0.7, 0.1, -3.3])
@pytest.mark.parametrize("advantage", ["grpo", "rloo"])
def test_equal_scores_have_exactly_zero_advantage(advantage, score):
    """Their mean rounds: three times 0.7 over 3 is not 0.7, and grpo divides by 1e-4."""
    found = grouped(advantage, [score] * 3, 3)
    assert found.tolist() == [0.0, 0.0, 0.0]


def test_has_signal_where_only_scores_count():
    scores = torch.tensor([1.0, 1, 0, 1])
    grpo = PPOConfig(advantage="grpo", samples_per_prompt=2)
    assert has_signal(scores, grpo, 0.0) == [False, False, True, True]
    assert has_signal(scores, grpo, 0.1) == [True] * 4
    whitened = replace(grpo, whiten_rewards=True)
    assert has_signal(scores, whitened, 0.0) == [True] * 4
    assert has_signal(scores, PPOConfig(), 0.0) == [True] * 4


def test_responses_are_compared_with_those_to_their_own_prompt():
    scores = [1.0, 0.0, 5.0, 5.0]
    assert_close(
        grouped("grpo", scores, 2)[:2], torch.tensor([0.70701, -0.70701]), atol=1e-4, rtol=0
    )
    assert_close(grouped("rloo", scores, 2), torch.tensor([1.0, -1, 0, 0]))
    assert_close(grouped("reinforce_baseline", scores), torch.tensor([-1.75, -2.75, 2.25, 2.25]))
    plain = grouped("reinforce_pp", scores, whiten_advantages=False)
    assert_close(plain, torch.tensor(scores))

"""Warnings about reward hacking."""

import pytest

from rlhf_cli.stages.rollouts.reward_hacking import (
    BASELINE_ROLLOUTS,
    REPEAT_AFTER,
    RewardHackingMonitor,
)

CALM = {"score": 1.0, "entropy": 1.0, "length": 20.0, "ended": 0.8, "distinct": 1.0, "deviation": 1}


@pytest.mark.parametrize(
    ("now", "warning"),
    [
        ({"score": 2.0, "entropy": 0.1}, "fell from 1.000 to 0.100 nats per token"),
        ({"length": 41.0}, "Responses have 41 tokens, 20 at first"),
        ({"length": 9.0}, "Responses have 9 tokens, 20 at first"),
        ({"ended": 0.3}, "30% of the responses ended by themselves, 80% at first"),
        ({"ended": 0.0}, "No response ended by itself"),
        ({"distinct": 0.2}, "Only 20% of the responses are distinct"),
        ({"deviation": 0.0}, "All scores are 1"),
    ],
)
def test_a_warning_has_numbers_and_is_repeated_after_a_while(now, warning):
    monitor = RewardHackingMonitor()
    for _ in range(BASELINE_ROLLOUTS):
        assert monitor.check(CALM) == []
    [line] = monitor.check({**CALM, **now})
    assert warning in line
    for _ in range(REPEAT_AFTER - 1):
        assert monitor.check({**CALM, **now}) == []
    assert len(monitor.check({**CALM, **now})) == 1


def test_a_higher_score_alone_gives_no_warning():
    monitor = RewardHackingMonitor()
    for score in range(10):
        assert monitor.check({**CALM, "score": float(score), "entropy": 0.5}) == []


def test_the_baseline_is_restored_from_a_state_dict():
    first, second = RewardHackingMonitor(), RewardHackingMonitor()
    first.check(CALM)
    second.load_state_dict(first.state_dict())
    assert second.check({**CALM, "length": 99.0}) == first.check({**CALM, "length": 99.0})

"""Terms together: sums, LLaMA-2's rule, scale, baseline, clip."""

import math
import statistics
from collections import deque

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.distributed.ranks import SINGLE_PROCESS
from rlhf_cli.errors import DataError
from rlhf_cli.rewards.config import RewardsConfig, RewardTerm
from rlhf_cli.rewards.rewards import (
    RunningStd,
    llama2,
    load_combined_reward,
    safety_tags,
    whiten_scores,
)
from rlhf_cli.rewards.samples import Samples
from rlhf_cli.rewards.scorer import PatternScorer
from tests.rewards.helpers import context, samples

TWO_TERMS = [RewardTerm(pattern="a", weight=2), RewardTerm(length_penalty=0.5, name="short")]


def given(*lengths, responses=None):
    """Samples with responses of so many tokens."""
    count = len(lengths)
    ids = [[0] * length for length in lengths]
    return Samples(["p"] * count, responses or [""] * count, [[1]] * count, ids)


def by_length(**settings):
    """Each response scores minus its number of tokens."""
    return load_combined_reward(RewardsConfig(length_penalty=1.0, **settings), None, context())


class Peer:
    """Ranks of which the others say what is put in."""

    def __init__(self, *others):
        self.others, self.world_size = deque(others), 2

    def all_gather_json(self, value):
        return [value, self.others.popleft()]

    def all_gather_concat(self, tensor):
        return torch.cat([tensor, torch.tensor(self.others.popleft(), dtype=tensor.dtype)])


def test_a_weighted_sum_and_the_parts_of_it(capsys):
    rewards = load_combined_reward(RewardsConfig(terms=TWO_TERMS), None, context())
    assert capsys.readouterr().err.splitlines() == [
        "reward pattern: 1 where the response has the pattern a, times 2",
        "reward short: -0.5 for each token of the response",
    ]
    scores = rewards.score(given(2, 4, responses=["a", "b"]))
    assert {name: found.tolist() for name, found in scores.by_term.items()} == {
        "pattern": [1, 0],
        "short": [-1, -2],
    }
    assert scores.total.tolist() == [1, -2]
    assert rewards.nbytes == 0


def test_nothing_to_score():
    assert by_length(scale="running", clip=1).score(given()).total.tolist() == []


def test_baseline_then_scale_then_clip():
    assert by_length(baseline=-2.0).score(given(1, 3)).total.tolist() == [1, -1]
    spread = statistics.stdev([1, -1, -5])
    scores = by_length(baseline=-2.0, scale="running", clip=1.5).score(given(1, 3, 7))
    assert_close(scores.total, torch.tensor([1 / spread, -1 / spread, -1.5]))


def test_the_running_deviation_is_that_of_all_scores_so_far():
    rewards = by_length(scale="running")
    rewards.score(given(1, 2))
    total = rewards.score(given(4, 8)).total
    assert_close(total, torch.tensor([-4.0, -8.0]) / statistics.stdev([1, 2, 4, 8]))


def test_scores_that_are_only_looked_at_are_not_counted():
    rewards = by_length(scale="running")
    rewards.score(given(1, 2))
    before = rewards.state_dict()
    rewards.score(given(100, 200), observe=False)
    assert rewards.state_dict() == before


def test_the_deviation_goes_on_after_a_checkpoint():
    rewards, again = by_length(scale="running"), by_length(scale="running")
    rewards.score(given(1, 2, 9))
    again.load_state_dict(rewards.state_dict())
    assert again.score(given(3, 5)).total.tolist() == rewards.score(given(3, 5)).total.tolist()


def test_equal_scores_are_not_blown_up():
    rewards = by_length(scale="running")
    assert rewards.score(given(3)).total.tolist() == [-3]
    assert rewards.score(given(3, 3)).total.tolist() == [-3, -3]


def test_a_deviation_far_from_zero_is_exact():
    deviation, values = RunningStd(), [1e9 + i for i in range(10)]
    for value in values:
        deviation.update([value], SINGLE_PROCESS)
    assert deviation.value == pytest.approx(statistics.stdev(values), rel=1e-9)


def test_ranks_share_one_deviation():
    deviation = RunningStd()
    deviation.update([1.0, 2.0], Peer([4.0, 8.0]))
    assert deviation.value == pytest.approx(statistics.stdev([1, 2, 4, 8]))


def test_whitened_scores_have_mean_0_and_variance_1():
    scores = whiten_scores(torch.tensor([1.0, 2.0, 6.0]).double(), SINGLE_PROCESS)
    assert_close(scores.mean(), torch.zeros(()).double())
    assert_close(scores.var(), torch.ones(()).double())
    assert whiten_scores(torch.ones(3), SINGLE_PROCESS).tolist() == [0, 0, 0]
    assert whiten_scores(torch.ones(1), SINGLE_PROCESS).tolist() == [0]


def test_scores_are_whitened_over_all_ranks():
    found = whiten_scores(torch.tensor([1.0, 2.0]).double(), Peer([6.0]))
    assert_close(found, whiten_scores(torch.tensor([1.0, 2.0, 6.0]).double(), SINGLE_PROCESS)[:2])


def test_llama2_takes_safety_where_it_is_low_or_the_prompt_is_tagged():
    safety = torch.tensor([0.1, 0.9, 0.8, 0.15])
    helpful = torch.tensor([0.7, 0.6, 0.2, 0.5])
    tagged = torch.tensor([False, False, True, False])
    chosen = torch.tensor([0.1, 0.6, 0.8, 0.5]).double()
    expected = whiten_scores(torch.log(chosen / (1 - chosen)), SINGLE_PROCESS)
    assert_close(
        llama2(safety, helpful, tagged, 0.15, SINGLE_PROCESS), expected, atol=1e-6, rtol=1e-6
    )


def test_certain_probabilities_have_a_finite_logit():
    sure = torch.tensor([0.0, 1.0])
    found = llama2(sure, sure, torch.tensor([True, True]), 0.15, SINGLE_PROCESS)
    assert_close(found, torch.tensor([-1, 1]).double() / math.sqrt(2))


def rule_rewards(safety="safe", helpfulness="help"):
    terms = [
        RewardTerm(name="helpfulness", pattern=helpfulness),
        RewardTerm(name="safety", pattern=safety),
    ]
    return load_combined_reward(RewardsConfig(terms=terms, combine="llama2"), None, context())


def test_llama2_from_the_configuration():
    pairs = [("p", "help"), ("p", "safe help"), ("p", "safe"), ("p", "safe")]
    scores = rule_rewards().score(samples(*pairs, safety=[False, 0, "no", True]))
    # unsafe, helpful, not helpful, and asked about safety: 0 1 0 1
    assert_close(scores.total, torch.tensor([-1.0, 1, -1, 1]) * math.sqrt(3) / 2)
    assert scores.by_term["safety"].tolist() == [0, 1, 1, 1]


def test_tags_may_be_missing_and_must_be_true_or_false():
    assert safety_tags({}, 2).tolist() == [False, False]
    assert safety_tags({"safety": [None, "yes"]}, 2).tolist() == [False, True]
    with pytest.raises(DataError, match="column safety: got 7; need true or false"):
        safety_tags({"safety": [7]}, 1)


def test_llama2_refuses_what_is_no_probability(monkeypatch):
    monkeypatch.setattr(PatternScorer, "__call__", lambda *_: [0.5, 3.0])
    with pytest.raises(DataError, match=r"reward.terms\[0\].pattern: help gave 3 for responses\[1"):
        rule_rewards().score(samples(("a", "b"), ("c", "d")))

"""Options of the policy loss and the advantages in whole runs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli import cli
from rlhf_cli.distributed.ranks import SINGLE_PROCESS
from rlhf_cli.rewards.config import RewardsConfig, RewardTerm
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.response import Response
from rlhf_cli.stages.ppo.advantages import RolloutTensors, compute_advantages, has_signal
from rlhf_cli.stages.ppo.columns import POLICY_UNIT, POLICY_WEIGHT, policy_columns
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.ppo.updates import PPOUpdater
from rlhf_cli.stages.rollouts.minibatches import make_minibatches
from tests.stages.ppo.conftest import words_of
from tests.stages.ppo.test_run import require_equal

GRPO = ("advantage=grpo", "samples_per_prompt=2", "sampling.stop=[e,a,o]")
"""Some responses end at one of these letters, and the others are cut off."""

ALONE = ("kl_coef=0", "kl_in=loss", "kl_estimator=k3")
SEVERAL = "reward.terms=[{function: judge.py:letters}, {function: judge.py:length, weight: 0.5}]"

OPTIONS = {
    "sequence": (*GRPO, *ALONE, "loss_aggregation=sequence", "ratio=sequence"),
    "masked": (*GRPO, *ALONE, "loss_aggregation=constant", "mask_truncated=true", "scale=none"),
    "cispo": (*GRPO, "policy_loss=cispo", "clip_range_high=0.5", "entropy_coef=0.01"),
    "dapo": (*GRPO, "clip_range_high=0.28", "overlong_buffer=4", "scale=batch", "dual_clip=3"),
    "shuffled": (
        *GRPO,
        "minibatch_shuffle=true",
        "entropy_target=9",
        "entropy_coef=0.1",
        "ratio=sequence_token",
    ),
    "gdpo": (*GRPO, *ALONE, "reward.function=", SEVERAL, "normalize_rewards=each"),
}


QUICK = ("sequence", "cispo")


@pytest.mark.parametrize(
    "case",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in OPTIONS],
)
def test_micro_batch_size_does_not_matter(case, ppo):
    words = (*OPTIONS[case], "max_steps=1")
    whole = ppo(*words, out="whole")
    require_equal(whole, ppo(*words, "train.micro_batch_tokens=1", out="cut"))
    assert all(line["grad_norm"] > 0 for line in whole)


def responses(*lengths, finished=()):
    return [
        Response(k, k, [3, 4], list(range(5, 5 + n)), k in finished) for k, n in enumerate(lengths)
    ]


def test_the_columns_of_each_aggregation():
    """Responses of 1 and 3 tokens; the second was cut off at the limit of 4."""
    given = responses(1, 3, finished=[0])
    cfg = PPOConfig(sampling=SamplingConfig(max_new_tokens=4))
    weights = {
        "token": [[1, 0, 0], [1, 1, 1]],
        "sequence": [[1, 0, 0], [1 / 3] * 3],
        "constant": [[1 / 4, 0, 0], [1 / 4] * 3],
    }
    units = {"token": [[1, 0, 0], [1, 1, 1]], "sequence": [[1, 0, 0]] * 2}
    units["constant"] = units["sequence"]
    for kind, expected in weights.items():
        found = policy_columns(given, replace(cfg, loss_aggregation=kind))
        assert_close(found[POLICY_WEIGHT], torch.tensor(expected, dtype=torch.float32))
        assert found[POLICY_UNIT].int().tolist() == units[kind]
    masked = {
        kind: policy_columns(given, replace(cfg, loss_aggregation=kind, mask_truncated=True))
        for kind in weights
    }
    assert all(not of[POLICY_WEIGHT][1].any() for of in masked.values())
    counts = {kind: int(of[POLICY_UNIT].sum()) for kind, of in masked.items()}
    assert counts == {"token": 1, "sequence": 1, "constant": 2}


def test_a_step_whose_responses_were_all_cut_off_changes_nothing(ppo):
    """No response of 1 token ends: the loss has nothing to divide by, and is 0."""
    lines = ppo(*GRPO[:2], *ALONE, "mask_truncated=true", "max_new_tokens=1", "max_steps=1")
    assert lines[0]["grad_norm"] == lines[0]["loss"] == 0
    assert lines[0]["objective/teaching"] == 0


def updater(cfg):
    """An updater whose experience is not made."""
    nothing: Any = None
    return PPOUpdater(cfg, nothing, nothing, None, SINGLE_PROCESS)


def test_the_penalties_of_a_response():
    cfg = PPOConfig(
        sampling=SamplingConfig(max_new_tokens=8),
        missing_eos_penalty=1.0,
        overlong_buffer=4,
        overlong_penalty=0.5,
    )
    found = updater(cfg)._penalties(responses(2, 6, 8, finished=[0, 1]))
    assert_close(found, torch.tensor([0.0, -0.25, -1.5]))


def each(scores, **changes):
    """Advantages [B] of groups of two with scores [B, K] of each reward."""
    terms = torch.tensor(scores)
    count = len(terms)
    zero, full = torch.zeros(count, 2), torch.ones(count, 2, dtype=torch.bool)
    rewards = RewardsConfig(terms=[RewardTerm(pattern="a"), RewardTerm(pattern="b", weight=2.0)])
    cfg = PPOConfig(advantage="grpo", samples_per_prompt=2, reward=rewards, **changes)
    found = RolloutTensors(zero, zero, zero, full, full, terms.sum(1), 2, terms)
    return compute_advantages(found, cfg, 0.0, SINGLE_PROCESS).advantages[:, 0]


def test_rewards_normalized_apart_by_hand():
    """In a group of two with different scores each has ±1/√2: sums ±3/√2 and ±1/√2, over their std.

    The four are 3 -3 -1 1 over √2; their deviation is sqrt(20 / 3) / √2.
    """
    found = each([[1.0, 1.0], [0.0, 0.0], [5.0, 0.0], [0.0, 9.0]], normalize_rewards="each")
    expected = torch.tensor([3.0, -3.0, -1.0, 1.0]) / (20 / 3) ** 0.5
    assert_close(found, expected, atol=1e-3, rtol=0)


def test_a_group_with_equal_scores_of_each_reward_has_exactly_no_advantage():
    found = each([[0.7, 1.0], [0.7, 1.0], [5.0, 0.0], [0.0, 9.0]], normalize_rewards="each")
    assert found[:2].tolist() == [0, 0]


def test_a_group_has_signal_where_one_reward_differs():
    terms = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    cfg = PPOConfig(advantage="grpo", samples_per_prompt=2)
    assert has_signal(terms.sum(1), cfg, 0.0) == [False] * 4
    assert has_signal(terms.sum(1), cfg, 0.0, terms) == [True, True, False, False]
    assert has_signal(terms.sum(1), replace(cfg, entropy_coef=0.1), 0.0) == [True] * 4


def test_shuffled_minibatches_hold_each_response_once():
    given = responses(1, 2, 3, 4, 5, 6)
    cpu = torch.device("cpu")
    order = [3, 0, 5, 1, 4, 2]  # even places: 1, 4, 5
    divided = make_minibatches(given, 2, 99, cpu, None, order)
    members = [sorted(k for micro in micros for k in micro.members) for micros in divided]
    assert members == [[1, 4, 5], [0, 2, 3]]


def test_the_minibatches_are_shuffled_after_the_first_epoch_only(ppo, monkeypatch):
    """The first has the micro-batches of the old log-probs, so its first ratio is exactly 1."""
    seen, real = [], PPOUpdater._divide

    def divide(self, batch, epoch):
        found = real(self, batch, epoch)
        assert (found is batch.minibatches) == (epoch == 0)
        seen.append([sorted(i for rows in part for i in rows.example_ids) for part in found])
        return found

    monkeypatch.setattr(PPOUpdater, "_divide", divide)
    ppo("minibatch_shuffle=true", "ppo_epochs=4", "batch_size=8", "max_steps=1")
    assert len({str(parts) for parts in seen}) > 1
    assert all(sorted([*first, *second]) == list(range(8)) for first, second in seen)


def test_an_entropy_bonus_raises_the_entropy(ppo):
    """Equal scores: nothing else has a gradient."""
    words = ("advantage=grpo", "samples_per_prompt=2", "reward.function=judge.py:equal", *ALONE)
    lines = ppo(*words, "entropy_coef=1", "max_steps=3", "lr=1e-2", "temperature=0.5")
    assert lines[-1]["policy/entropy"] > lines[0]["policy/entropy"] + 0.01
    assert {line["objective/entropy_coef"] for line in lines} == {1.0}


def test_the_entropy_coefficient_adapts(ppo):
    """The target is far above the entropy: the coefficient rises by a step with each rollout."""
    lines = ppo("entropy_target=50", "entropy_step=0.25", "entropy_coef=0.5", "max_steps=3")
    assert [line["objective/entropy_coef"] for line in lines] == pytest.approx([0.5, 0.75, 1.0])


def test_the_dual_clip_and_the_upper_range_are_counted(ppo):
    lines = ppo("clip_range=1e-6", "clip_range_high=9", "max_steps=1", "lr=1e-2")
    assert 0 < lines[0]["policy/clip_fraction"] < 0.9


@pytest.mark.parametrize(
    ("words", "begins"),
    [
        (["dual_clip=0.5"], "dual_clip: got 0.5, at which"),
        (
            ["dual_clip=3", "policy_loss=cispo"],
            "dual_clip: given, but only policy_loss=ppo reads it. Try dual_clip=0",
        ),
        (
            ["policy_loss=cispo", "clip_range=0.1", "clip_range_high=2"],
            "clip_range: given, but only policy_loss=ppo reads it",
        ),
        (["policy_loss=cispo", "ratio=sequence_token"], "ratio: got sequence_token with"),
        (["entropy_step=0.1"], "entropy_step: given, but only entropy_target reads it"),
        (["scale=none"], "scale: given, but only advantage=grpo reads it. Try scale=std"),
        (["normalize_rewards=each"], "normalize_rewards: given, but only advantage=grpo"),
        ([*GRPO, *ALONE, "normalize_rewards=each"], "normalize_rewards: got each with fewer"),
        (
            [*OPTIONS["gdpo"], "missing_eos_penalty=1"],
            "missing_eos_penalty: given with normalize_rewards=each",
        ),
        ([*OPTIONS["gdpo"], "kl_in=reward", "kl_coef=0.1"], "kl_in: got reward with"),
        ([*OPTIONS["gdpo"], "scale=none"], "scale: given, but only normalize_rewards=sum"),
        (["overlong_buffer=9"], "overlong_buffer: got 9, more than sampling.max_new_tokens=8"),
        (["overlong_penalty=2"], "overlong_penalty: given, but only overlong_buffer reads it"),
        (
            ["minibatch_shuffle=true", "ppo_epochs=1"],
            "minibatch_shuffle: given, but only a run of several epochs and minibatches reads it",
        ),
    ],
)
def test_a_contradiction_is_refused_in_one_line(words, begins, files, capsys):
    assert cli.main(words_of(*words)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {begins}")

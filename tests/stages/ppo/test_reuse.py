"""rollout_logprobs=reuse: the sampler's log-probs in place of another forward pass."""

import math
from dataclasses import replace

import pytest
import torch

from rlhf_cli.models.policy import Policy
from rlhf_cli.rollout import engines

GRPO = ("advantage=grpo", "samples_per_prompt=2")
REUSE = "rollout_logprobs=reuse"


@pytest.mark.parametrize("words", [(), GRPO, ("adapter=lora", "adapter.rank=2", "value=adapter")])
def test_updates_equal_those_of_recomputed_logprobs(words, ppo):
    """In fp32, over the epochs and minibatches of a rollout: rounding is about 1e-6 nats.

    Not over several rollouts: where scores of a group are equal, rounding is divided by itself.
    """
    common = (*words, "reward.function=judge.py:length", "max_steps=1")
    (one,) = ppo(*common, out="recompute")
    (other,) = ppo(*common, REUSE, out="reuse")
    for name in ("loss", "grad_norm", "objective/kl", "objective/entropy", "policy/ratio"):
        assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-4), name
    assert other["objective/scores"] == one["objective/scores"]  # the same responses
    assert 0 < other["rollout/mismatch"] < 1e-5
    assert "rollout/mismatch" not in one


def test_bf16_mismatch_is_rounding(ppo):
    (line,) = ppo(REUSE, "train.precision=bf16", "max_steps=1", "ppo_epochs=1", "minibatches=1")
    assert 0 < line["rollout/mismatch"] < 0.05
    assert line["policy/ratio"] == pytest.approx(1, abs=0.02)


def test_mismatch_is_measured_before_the_first_update(ppo, monkeypatch):
    """A sampler that is off by 0.25 nats; later updates do not count."""
    real = engines.generate

    def off(*args, **words):
        drawn = real(*args, **words)
        return [replace(one, logprobs=[x - 0.25 for x in one.logprobs]) for one in drawn]

    far = ("lr=1e-1", "max_steps=1", "ppo_epochs=3")
    (good,) = ppo(REUSE, *far, out="good")
    assert good["rollout/mismatch"] < 1e-5
    assert good["policy/approx_kl"] > 1e-2
    monkeypatch.setattr(engines, "generate", off)
    (bad,) = ppo(REUSE, *far, out="bad")
    assert bad["rollout/mismatch"] == pytest.approx(0.25, abs=1e-4)
    assert bad["rollout/mismatch_kl"] == pytest.approx(math.exp(0.25) - 1 - 0.25, abs=1e-4)


@pytest.fixture
def passes(monkeypatch):
    """Names of the trained policy's forward passes outside its updates."""
    seen = []

    def count(name):
        real = getattr(Policy, name)

        def counted(self, *args, **words):
            if not torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
                seen.append(name)
            return real(self, *args, **words)

        monkeypatch.setattr(Policy, name, counted)

    count("forward")
    count("values")
    return seen


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        ((), {"forward"}),
        ((REUSE,), {"values"}),  # no output layer
        ((REUSE, *GRPO), set()),
    ],
)
def test_the_policy_computes_only_what_is_needed(words, kinds, ppo, passes):
    ppo(*words, "max_steps=2")
    assert set(passes) == kinds


def test_the_held_out_kl_is_recomputed(ppo):
    lines = ppo(REUSE, "data.eval=prompts.jsonl", "lr=1e-9", "max_steps=1")
    assert lines[0]["eval/kl"] == 0

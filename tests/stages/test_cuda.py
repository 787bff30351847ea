"""Every stage on a stand-in for a GPU: no tensor on the wrong device, few waits for the device."""

from collections import Counter

import pytest

from rlhf_cli import cli
from rlhf_cli.train import loop
from tests.fake_cuda import fake_cuda
from tests.helpers import last_of_each

PPO = ("ppo", "reward.length_penalty=1", "max_new_tokens=16", "ppo_epochs=2", "minibatches=2")

STAGES = {
    "pretrain": (("pretrain", "max_length=64"), 1),
    "sft": (("sft",), 1),
    "reward": (("reward",), 1),
    "dpo": (("dpo",), 1),
    "bco": (("bco",), 2),
    "ppo": (PPO, 30),
}
"""Words, and how often a step may wait for the device: to read loss and norm once an update, and in
a rollout the tokens of each position and what was computed of each micro-batch."""

VARIANTS = {
    "sft, LoRA, recomputed": (("sft", "adapter=lora", "train.gradient_checkpointing=true"), 1),
    "sft, padded": (("sft", "model.attention=sdpa"), 3),  # transformers asks two things of a mask
    "reward, LoRA": (("reward", "adapter=lora", "center_coefficient=0.01"), 1),
    "dpo, a copy": (("dpo", "model.reference=copy", "loss_type=[sigmoid,sft]"), 1),
    "dpo, LoRA": (("dpo", "adapter=lora", "model.reference=adapter_off", "wpo=true"), 1),
    "dpo, kto": (("dpo", "loss_type=kto"), 1),
    "dpo, aot": (("dpo", "loss_type=aot_unpaired", "ld_alpha=0.5"), 1),
    "ppo, beside text": ((*PPO, "ptx_coef=0.1", "ptx_data=tiny"), 30),
    "ppo, LoRA": ((*PPO, "adapter=lora", "value=adapter", "rollout_logprobs=reuse"), 30),
    "ppo, grpo": ((*PPO, "advantage=grpo", "samples_per_prompt=2"), 30),
    "ppo, as TRL": ((*PPO, "compat=trl", "whiten_rewards=true", "early_stop_kl=1"), 60),
}


@pytest.fixture
def waits(monkeypatch):
    """Of each step of the runs that follow, where it waited for the device."""
    found = []
    take = loop.Trainer.take

    def counted(trainer):
        before = Counter(fake.waits)
        goes_on = take(trainer)
        if goes_on:
            found.append(fake.waits - before)
        return goes_on

    monkeypatch.setattr(loop.Trainer, "take", counted)
    monkeypatch.setattr(loop, "measure_peak", lambda device, compute: 1e12)
    with fake_cuda(monkeypatch) as fake:
        yield found


def words(stage, out, *more):
    return last_of_each(
        *stage,
        "model=tiny",
        "data=tiny",
        "train.precision=fp32",
        "batch_size=8",
        "max_steps=2",
        f"output_dir={out}",
        *more,
    )


@pytest.mark.parametrize(
    "name", [*STAGES, *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS)]
)
def test_a_stage_trains_on_a_gpu_and_hardly_waits(name, tmp_path, waits):
    stage, budget = (STAGES | VARIANTS)[name]
    assert cli.main(words(stage, tmp_path / "run")) == 0
    assert len(waits) == 2
    assert max(step.total() for step in waits) <= budget, waits

"""Every stage on a stand-in for a GPU: no tensor on the wrong device, few waits for the device."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from rlhf_cli import cli
from rlhf_cli.train import loop
from rlhf_cli.train.metrics import Meter, read_metrics
from tests.fake_cuda import fake_cuda
from tests.helpers import last_of_each, without_machine
from tests.stages.test_stages import stop_after

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
    take = loop.TrainingLoop.train_step

    def counted(trainer):
        before = Counter(fake.waits)
        goes_on = take(trainer)
        if goes_on:
            found.append(fake.waits - before)
        return goes_on

    monkeypatch.setattr(loop.TrainingLoop, "train_step", counted)
    monkeypatch.setattr(loop, "measure_peak", lambda device, compute: 1e12)
    with fake_cuda(monkeypatch) as fake:
        yield found


def words(stage, out, *more):
    return last_of_each(
        *stage,
        "model=tiny",
        "data=tiny",
        "data.split=train[:32]",
        "data.eval=none",
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
    assert waits[1].total() <= budget, waits[1]  # the first rollout tries the model's decoding too


def test_a_logged_line_waits_once(monkeypatch):
    with fake_cuda(monkeypatch) as fake:
        here, there = torch.tensor(6.0), torch.ones(3).to("cuda")
        meter = Meter()
        meter.add({"a": (there.sum(), there.sum()), "b": (there.sum(), 2.0), "c": (here, 3)})
        fake.waits.clear()
        assert meter.read() == {"a": 1.0, "b": 1.5, "c": 2.0}
        assert fake.waits.total() == 1


def test_a_run_on_a_gpu_is_continued_bitwise(tmp_path, monkeypatch, waits, capsys):
    held_out = ("data.split=train[:90%]", "data.eval=8", "train.eval_steps=2")
    settings = ("max_steps=4", "train.save_steps=1", *held_out)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert cli.main(words(("sft",), whole, *settings)) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert cli.main(words(("sft",), broken, *settings)) == 130
    assert cli.main(words(("sft",), broken, *settings)) == 0
    assert "continuing from step-000002" in capsys.readouterr().err
    name = Path("model", "model.safetensors")
    assert (whole / name).read_bytes() == (broken / name).read_bytes()
    on_gpu = [without_machine(read_metrics(out / "metrics.jsonl")) for out in (whole, broken)]
    assert on_gpu[0] == on_gpu[1]


def test_a_gpu_measures_what_a_cpu_measures(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "measure_peak", lambda device, compute: 1e12)
    assert cli.main(words(STAGES["sft"][0], tmp_path / "cpu")) == 0
    with fake_cuda(monkeypatch):
        assert cli.main(words(STAGES["sft"][0], tmp_path / "gpu")) == 0
    cpu, gpu = (
        without_machine(read_metrics(tmp_path / name / "metrics.jsonl")) for name in ("cpu", "gpu")
    )
    for there, here in zip(gpu, cpu, strict=True):
        assert there == pytest.approx(here, abs=1e-5)


def test_models_write_and_are_measured_on_a_gpu(tmp_path, waits, capsys):
    prompts = ("prompt=[Tea?,Salt?]", "max_new_tokens=4", "precision=fp32")
    assert cli.main(["generate", "model=tiny", *prompts, "sampling.min_new_tokens=2"]) == 0
    assert cli.main(["evaluate", "model=tiny", "data=tiny", "precision=fp32"]) == 0
    assert "perplexity" in capsys.readouterr().out


def test_a_rank_without_rows_is_where_the_others_are(tmp_path, rows):
    """9 rows, 4 a step, 2 ranks: the third step of an epoch has a row for one rank only."""
    data = rows(*({"prompt": f"{i}?", "completion": " yes", "label": i % 2 == 0} for i in range(9)))
    changes = (f"data={data}", "data.split=train", "batch_size=4", "max_steps=3")
    argv = words(("bco",), tmp_path / "run", *changes)
    ranks = ["--standalone", "--nproc-per-node=2", "-m", "tests.fake_cuda_rank"]
    command = [sys.executable, "-m", "torch.distributed.run", *ranks, *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 3

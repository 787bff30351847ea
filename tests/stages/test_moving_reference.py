"""TR-DPO: the reference follows the policy, and goes on from a checkpoint where it was."""

import shutil

import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from rlhf_cli import cli
from rlhf_cli.kernels.registry import choose
from rlhf_cli.models.parameters import frozen_copy
from rlhf_cli.models.policy import Policy
from rlhf_cli.stages.dpo.loss import MovingReference
from rlhf_cli.stages.reference import ReferenceModel
from rlhf_cli.train.metrics import read_metrics
from tests.helpers import last_of_each, tiny_llama, without_machine

CPU = torch.device("cpu")


def test_every_so_many_steps_it_is_a_mean():
    policy = Policy(tiny_llama(), choose("auto", CPU)[0], flat=True)
    held = frozen_copy(policy, torch.float32)
    before = {name: p.clone() for name, p in held.named_parameters()}
    with torch.no_grad():
        for param in policy.parameters():
            param.add_(1.0)
    moving = MovingReference(policy, ReferenceModel(held), every=3, share=0.6)
    for step in (1, 2):
        moving.after_step(step)
    assert all(torch.equal(p, before[name]) for name, p in held.named_parameters())
    moving.after_step(3)
    for name, param in held.named_parameters():
        assert_close(param, before[name] + 0.6)
    assert not any(p.requires_grad for p in held.parameters())


def dpo(out, *words):
    command = [
        "dpo", "config=tiny/dpo", "model.reference=copy", "sync_steps=2", "max_steps=6",
        "batch_size=4", "train.save_steps=3", "data.eval=none", f"output_dir={out}", *words,
    ]  # fmt: skip
    return cli.main(last_of_each(*command))


def test_a_run_that_goes_on_has_the_same_reference(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert dpo(whole) == 0
    shutil.copytree(whole, broken)
    for gone in ("model", "checkpoints/step-000006"):
        shutil.rmtree(broken / gone)
    manifest = broken / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"complete"', '"running"'))
    assert dpo(broken) == 0
    assert without_machine(read_metrics(broken / "metrics.jsonl")) == without_machine(
        read_metrics(whole / "metrics.jsonl")
    )
    weights = [load_file(run / "model" / "model.safetensors") for run in (whole, broken)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

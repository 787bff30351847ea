"""Estimates against what is measured: live bytes of a step, and whole runs."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.testing import assert_close

from benchmarks import memory_model
from rlhf_cli.config.args import parse
from rlhf_cli.context import RunContext
from rlhf_cli.kernels.registry import choose
from rlhf_cli.losses.reduction import LossOutput, LossTerm
from rlhf_cli.memory.device import Device
from rlhf_cli.memory.estimate import Rows, estimate_memory
from rlhf_cli.models.load import LoadInputs, enable_activation_checkpointing, load_policy
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resolve import resolve
from rlhf_cli.train.optim import MasterAdamW
from rlhf_cli.train.update import accumulate, clip_and_step
from tests.helpers import random_rows

CPU = torch.device("cpu")

BAR = 0.15
"""Largest error of an estimate; what a layer holds for a moment is counted roughly."""

LENGTH, ROWS_A_PASS = 128, 4


def live_peak(function):
    """The most bytes that tensors made in a function held at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        function()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


@pytest.mark.parametrize(
    "words",
    [
        ("train.precision=bf16",),
        ("train.precision=fp32",),
        ("train.precision=bf16", "adapter=lora"),
        ("train.precision=bf16", "train.gradient_checkpointing=true"),
    ],
    ids=["full bf16", "full fp32", "LoRA", "checkpointing"],
)
def test_a_step_of_two_passes_holds_what_was_estimated(words, tmp_path):
    tokens = LENGTH * ROWS_A_PASS
    given = ["model=tiny", "data=tiny", f"train.micro_batch_tokens={tokens}", *words]
    given += [f"train.batch_size={2 * ROWS_A_PASS}"]
    cfg = resolve(COMMANDS["sft"], parse(COMMANDS["sft"], given)).config
    compute = torch.float32 if cfg.train.precision == "fp32" else torch.bfloat16
    ctx = RunContext(CPU, compute, 0, tmp_path)
    policy = load_policy(cfg, LoadInputs(load_tokenizer(cfg.model), ctx))
    if cfg.train.gradient_checkpointing:
        enable_activation_checkpointing(policy)
    optimizer = MasterAdamW(policy, cfg.train, compute)
    passes = [random_rows([LENGTH] * ROWS_A_PASS, 1024) for _ in range(2)]

    def step():
        gradients = accumulate(
            passes, lambda rows: LossOutput({"nll": LossTerm(-policy(rows).logp.sum(), "tokens")}),
            optimizer,
        )  # fmt: skip
        clip_and_step(gradients, optimizer, 1e-5, 1.0)

    step()  # makes the moments
    device = Device("CPU", "cpu", 10**12)
    found = estimate_memory("sft", cfg, Rows(LENGTH, LENGTH), device).phases["update"]
    counted = sum(
        found.get(part, 0) for part in ("gradients", "activations", "attention", "logits")
    )
    assert policy.implementation is choose("auto", CPU)[0]
    assert_close(float(counted), float(live_peak(step)), rtol=BAR, atol=0)


RUNS = ("sft wide full bf16", "sft wide LoRA nf4", "dpo wide full bf16, reference copy")


def check_run(name):
    """Run a case of the benchmark, and compare its estimate with its measured peak."""
    case = next(case for case in memory_model.CASES if case.name == name)
    found = memory_model.run(case)
    assert_close(float(found["estimate"]), float(found["measured"]), rtol=BAR, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_takes_what_was_estimated(name):
    check_run(name)


@pytest.mark.gpu
@pytest.mark.parametrize("name", RUNS)
def test_a_run_takes_what_was_estimated_of_a_gpu(name):
    """By torch's allocator, without the context of CUDA."""
    check_run(name)

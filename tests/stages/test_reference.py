"""A reference on the policy's own base: one copy of the weights, and it stays where it is."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.data.report import DataReport
from rlhf_cli.models.config import AdapterConfig, ComparedModelConfig
from rlhf_cli.models.resolve import ModelSource
from rlhf_cli.stages.dpo.loss import MovingReference
from rlhf_cli.stages.prepare_data import RunData
from rlhf_cli.stages.reference import load_reference
from tests.helpers import random_rows
from tests.models.test_adapters import LORA, disturb, policy_with, saved

CTX = SimpleNamespace(compute=torch.float32)
DATA = RunData(tokenizer=None, report=DataReport())
ROWS = random_rows([7, 12])


def hold(kind, policy):
    cfg = SimpleNamespace(model=ComparedModelConfig(path="x", reference=kind), kernels="auto")
    return load_reference(cfg, policy, DATA, CTX)


@pytest.fixture
def continued(tmp_path):
    """A policy whose adapter is that of an earlier run, trained on."""
    first = policy_with(LORA)
    disturb(first)
    return policy_with(AdapterConfig(), ModelSource("x", (saved(first, tmp_path / "model"),)))


@pytest.mark.parametrize("kind", ["auto", "copy"])
@pytest.mark.parametrize("new", [True, False], ids=["new adapter", "continued adapter"])
def test_the_base_is_there_once_and_the_reference_does_not_move(new, kind, continued):
    policy = policy_with(LORA) if new else continued
    base = {p.data_ptr() for n, p in policy.named_parameters() if "lora_" not in n}
    held = hold(kind, policy)
    both = [*policy.named_parameters(), *held.policy.named_parameters()]
    assert {p.data_ptr() for n, p in both if "lora_" not in n} == base
    start = policy(ROWS).logp.detach()
    before = held.logprobs(ROWS, 1.0)
    assert_close(before, start)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        policy(ROWS).logp.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.allclose(policy(ROWS).logp, start, atol=0.1)
    assert torch.equal(held.logprobs(ROWS, 1.0), before)


@pytest.mark.parametrize("kind", ["auto", "adapter_off", "copy"])
def test_trained_rows_of_new_tokens_are_not_the_references(kind):
    policy = policy_with(LORA, new_tokens=(3, 5))
    held = hold(kind, policy)
    assert held.policy is policy  # a row or two of its own at most, not a second model
    before = held.logprobs(ROWS, 1.0)
    disturb(policy)
    assert not torch.allclose(policy(ROWS).logp, before, atol=0.1)
    assert torch.equal(held.logprobs(ROWS, 1.0), before)


def test_a_moving_reference_moves_its_own_adapter(continued):
    held = hold("copy", continued)
    moving = MovingReference(continued, held, every=1, share=1.0)
    assert len(moving.pairs) == sum(p.requires_grad for p in continued.parameters())
    disturb(continued)
    moving.after_step(1)
    assert torch.equal(held.logprobs(ROWS, 1.0), continued(ROWS).logp)

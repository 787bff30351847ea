"""Policy, reference, value model and reward model, which share a base as adapters."""

import re

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from rlhf_cli import cli
from rlhf_cli.context import create_context, current_device
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.models.config import AdapterConfig, LoadConfig, ModelConfig
from rlhf_cli.models.load import LoadInputs, load_frozen, load_policy
from rlhf_cli.models.resolve import resolve_model
from rlhf_cli.models.reward_model import RewardModel
from rlhf_cli.models.shared_reward_model import SharedRewardModel, can_share_base
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.models.value_model import VALUE_ADAPTER, AdapterValueModel
from rlhf_cli.stages.ppo import setup
from rlhf_cli.stages.ppo.value_model import attach_value_model, parameter_bytes
from tests.helpers import last_of_each, rows_of
from tests.stages.conftest import FAST

FLAG = "gradient_checkpointing"
LORA = ("adapter=lora", "adapter.rank=2")
ROWS = rows_of([5, 60, 70, 1], [9, 80, 1], [7, 7, 3, 2, 1]).to(current_device())


@pytest.fixture(scope="module")
def reward_adapter(sft_run, tmp_path_factory):
    """A reward model that is an adapter on the SFT run."""
    out = tmp_path_factory.mktemp("runs") / "reward"
    words = ["reward", f"model={sft_run}", "data=tiny", "max_steps=2", f"output_dir={out}", *LORA]
    assert cli.main(last_of_each(*words, *FAST)) == 0
    return out


@pytest.fixture
def adapted(sft_run, tmp_path):
    """A policy that is a new adapter on the SFT run, its tokenizer and context."""
    cfg = LoadConfig(
        model=ModelConfig(path=str(sft_run)), adapter=AdapterConfig(kind="lora", rank=2)
    )
    ctx = create_context("fp32", 0, tmp_path)
    tokenizer = load_tokenizer(cfg.model)
    return load_policy(cfg, LoadInputs(tokenizer, ctx)), tokenizer, ctx


def shake(params):
    with torch.no_grad():
        for param in params:
            param.add_(torch.randn_like(param))


def test_a_reward_adapter_on_the_policys_base_scores_as_the_whole_model(adapted, reward_adapter):
    policy, tokenizer, ctx = adapted
    cfg = LoadConfig(model=ModelConfig(path=str(reward_adapter)))
    whole = load_frozen(RewardModel, cfg, LoadInputs(tokenizer, ctx))
    source = resolve_model(cfg.model)
    assert can_share_base(policy, source)
    shared = SharedRewardModel(policy, "reward", source.adapters[0], torch.float32)
    shake(p for p in policy.parameters() if p.requires_grad)  # training the policy changes nothing
    with torch.no_grad():
        torch.testing.assert_close(shared(ROWS), whole(ROWS), atol=1e-5, rtol=1e-5)
    for module in policy.modules():  # as of an adapter that was trained with dropout
        if isinstance(module, BaseTunerLayer):
            module.lora_dropout["for_reward"] = torch.nn.Dropout(0.5)
    with torch.no_grad():
        assert torch.equal(shared(ROWS), shared(ROWS))
    assert not any(p.requires_grad for p in shared.parameters())
    own, _ = parameter_bytes({"policy": policy.model, "reward": shared})["reward"]
    assert own == shared.head.numel() * 4  # its adapter stands in the policy's model


def test_a_full_policy_shares_no_memory(reward_adapter, sft_run, tmp_path):
    cfg = LoadConfig(model=ModelConfig(path=str(sft_run)))
    ctx = create_context("fp32", 0, tmp_path)
    policy = load_policy(cfg, LoadInputs(load_tokenizer(cfg.model), ctx))
    assert not can_share_base(policy, resolve_model(ModelConfig(path=str(reward_adapter))))


def test_a_cloned_adapter_starts_as_the_policy_and_is_independent(adapted):
    policy, _, _ = adapted
    adapters = policy.adapters
    shake(p for p in policy.parameters() if p.requires_grad)
    adapters.clone_adapter("start", trained=False)
    adapters.clone_adapter(VALUE_ADAPTER, trained=True)
    before = policy(ROWS).logp.detach()
    for role in ("start", VALUE_ADAPTER):
        torch.testing.assert_close(policy(ROWS, role=role).logp, before)
    trained = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert all(".default." in name or ".for_value." in name for name in trained)
    shake(p for n, p in policy.named_parameters() if ".default." in n)
    torch.testing.assert_close(policy(ROWS, role="start").logp.detach(), before)
    assert (policy(ROWS).logp - before).abs().max() > 0.1


def test_an_adapter_value_model_trains_only_its_own_adapter(adapted):
    policy, _, _ = adapted
    policy.adapters.clone_adapter(VALUE_ADAPTER, trained=True)
    policy.value_model = AdapterValueModel(policy.model.config.hidden_size)
    shake(policy.value_model.parameters())
    policy(ROWS, want={"logp", "value"}).value.sum().backward()
    moved = {n for n, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(".for_value." in name for name in moved)
    assert not any(".default." in name for name in moved)


def test_with_adapters_four_models_share_one_base(adapted, reward_adapter, ppo, sft_run, capsys):
    words = [f"model={sft_run}", *LORA, "value=adapter", "reward.function="]
    ppo(*words, f"reward.model={reward_adapter}", "max_steps=2")
    shown = capsys.readouterr().err
    rows = shown[shown.index("models in memory:") :].splitlines()[1:6]
    numbers = {row[:18].strip(): float(row[18:].split()[0]) for row in rows}
    assert numbers.keys() == {"policy", "reference", "value model", "reward reward", "all"}
    base = sum(p.numel() * 4 for n, p in adapted[0].named_parameters() if "lora" not in n) / 1e6
    assert base < numbers["all"] < 1.3 * base
    assert numbers["reference"] == 0
    count = int(
        re.search(r"policy's base, ([\d,]+) parameters of its own", shown)[1].replace(",", "")
    )
    head = adapted[0].model.config.get_text_config().hidden_size + 1
    assert count == head + sum(p.numel() for p in adapted[0].parameters() if p.requires_grad)


def test_the_reference_of_a_continued_adapter_is_that_adapter(sft_run, ppo, files, capsys):
    ppo(f"model={sft_run}", *LORA, "max_steps=1", "lr=1e-2", out="one")
    capsys.readouterr()
    (line,) = ppo("model=one", "max_steps=1", "ppo_epochs=1", "minibatches=1", out="two")
    assert line["objective/kl"] == 0
    assert "a frozen copy of the adapter on the same base" in capsys.readouterr().err


@pytest.fixture
def whole_value_model(sft_run, files):
    """Arguments for a value model that starts from a reward model."""
    words = ["reward", f"model={sft_run}", "data=tiny", "max_steps=1", "output_dir=rm", *FAST]
    assert cli.main(last_of_each(*words)) == 0
    return [f"model={sft_run}", "value=model", "reward.function=", "reward.model=rm"]


def test_a_separate_value_model_starts_as_the_reward_model(whole_value_model, ppo, capsys):
    lines = ppo(*whole_value_model, "max_steps=2")
    assert "a separate model, from " in capsys.readouterr().err
    assert lines[0]["loss/value"] > 0


def test_a_separate_value_model_recomputes_its_activations(whole_value_model, ppo, monkeypatch):
    value_models = []

    def keep(cfg, policy, *loaded):
        attach_value_model(cfg, policy, *loaded)
        value_models.append(policy.value_model)

    monkeypatch.setattr(setup, "attach_value_model", keep)
    words = [*whole_value_model, "max_steps=1"]
    kept = ppo(*words)
    recomputed = ppo(*words, "train.gradient_checkpointing=true", out="recomputed")
    flags = [
        any(getattr(m, FLAG, False) for m in value_model.modules()) for value_model in value_models
    ]
    assert flags == [False, True]
    assert recomputed[0]["loss/value"] == pytest.approx(kept[0]["loss/value"], abs=1e-5)


def rows_with_value(policy, rows: TokenBatch):
    return policy(rows, want={"value"}).value


def test_a_value_without_a_value_model_is_refused(adapted):
    with pytest.raises(ValueError, match="without value model"):
        rows_with_value(adapted[0], ROWS)

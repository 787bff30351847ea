"""Weights are loaded once, in the types that they are held in."""

import pytest
import torch
from transformers import AutoTokenizer

from rlhf_cli.context import RunContext
from rlhf_cli.models import base_model
from rlhf_cli.models.config import AdapterConfig, LoadConfig, ModelConfig, QuantConfig
from rlhf_cli.models.load import LoadInputs, load_frozen, load_generator, load_policy
from rlhf_cli.models.parameters import frozen_copy
from rlhf_cli.models.policy import Policy
from rlhf_cli.resources import shipped_model
from rlhf_cli.train.config import TrainConfig
from rlhf_cli.train.optim import MasterAdamW
from tests.helpers import tiny_llama

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model in bf16, as most are published."""
    found = tmp_path_factory.mktemp("models") / "bf16"
    tokenizer = AutoTokenizer.from_pretrained(shipped_model())
    tiny_llama(vocab_size=len(tokenizer)).bfloat16().save_pretrained(found)
    tokenizer.save_pretrained(found)
    return found


@pytest.fixture
def setting(folder, tmp_path):
    """Configuration, tokenizer and context of a run in bf16."""
    cfg = LoadConfig(model=ModelConfig(path=str(folder)))
    ctx = RunContext(torch.device("cpu"), BF16, 0, tmp_path)
    return cfg, AutoTokenizer.from_pretrained(folder), ctx


@pytest.fixture
def asked(monkeypatch):
    """The types that weights are read in."""
    found = []
    load_weights = base_model.load_checkpoint

    def spy(*args, dtype, **options):
        found.append(dtype)
        return load_weights(*args, dtype=dtype, **options)

    monkeypatch.setattr("rlhf_cli.models.base_model.load_checkpoint", spy)
    return found


def types(module):
    return {param.dtype for param in module.parameters()}


def test_what_generates_or_is_measured_is_read_in_the_compute_type(setting, asked):
    cfg, tokenizer, ctx = setting
    assert types(load_generator(cfg.model, QuantConfig(), LoadInputs(tokenizer, ctx))) == {BF16}
    assert types(load_frozen(Policy, cfg, LoadInputs(tokenizer, ctx))) == {BF16}
    assert asked == [BF16, BF16]


def test_under_an_adapter_the_base_is_read_in_the_compute_type(setting, asked):
    cfg, tokenizer, ctx = setting
    cfg.adapter = AdapterConfig(kind="lora", modules_to_save=["norm"])
    policy = load_policy(cfg, LoadInputs(tokenizer, ctx))
    assert asked == [BF16]
    trained = {param.dtype for param in policy.parameters() if param.requires_grad}
    frozen = {param.dtype for param in policy.parameters() if not param.requires_grad}
    assert (trained, frozen) == ({FP32}, {BF16})


def test_what_is_trained_is_read_in_fp32_and_becomes_its_own_master(setting, asked):
    cfg, tokenizer, ctx = setting
    policy = load_policy(cfg, LoadInputs(tokenizer, ctx))
    assert asked == [FP32]
    assert types(policy) == {FP32}
    held = {name: param.data_ptr() for name, param in policy.named_parameters()}
    masters = MasterAdamW(policy, TrainConfig(), BF16).masters
    assert {name: master.data_ptr() for name, master in masters.items()} == held
    assert types(policy) == {BF16}


def test_a_frozen_copy_has_values_of_its_own_in_the_compute_type(setting):
    cfg, tokenizer, ctx = setting
    policy = load_policy(cfg, LoadInputs(tokenizer, ctx))
    copied = frozen_copy(policy, BF16)
    assert types(copied) == {BF16}
    assert types(policy) == {FP32}
    assert not any(param.requires_grad for param in copied.parameters())
    pairs = zip(policy.parameters(), copied.parameters(), strict=True)
    assert all(torch.equal(one.bfloat16(), other) for one, other in pairs)
    assert copied.model.lm_head.weight is copied.model.model.embed_tokens.weight


@pytest.mark.parametrize("compute", ["bf16", "fp32"])
def test_the_check_says_what_it_ran_with(setting, capsys, compute):
    cfg, tokenizer, ctx = setting
    dtype = {"bf16": BF16, "fp32": FP32}[compute]
    policy = load_policy(cfg, LoadInputs(tokenizer, RunContext(ctx.device, dtype, 0, ctx.out)))
    said = f"equal the model's own in {compute} with attention per_row"
    assert said in capsys.readouterr().err
    assert all(param.requires_grad for param in policy.parameters())

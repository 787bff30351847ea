"""Mixtures of experts: adapters on fused experts, and the loss that spreads tokens over them."""

import math

import pytest
import torch
from peft import PeftModel
from torch.testing import assert_close
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from rlhf_cli.context import forked_rng
from rlhf_cli.errors import ModelError
from rlhf_cli.kernels.registry import choose
from rlhf_cli.losses.likelihood import load_balancing_loss
from rlhf_cli.models.attach_adapters import attach_adapters
from rlhf_cli.models.config import AdapterConfig
from rlhf_cli.models.local_base import merge_adapters
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.resolve import ModelSource
from rlhf_cli.models.router import balancing_loss_coef, report_balancing_loss
from rlhf_cli.stages.likelihood import balanced_loss
from rlhf_cli.train.config import TrainConfig
from rlhf_cli.train.optim import MasterAdamW
from rlhf_cli.train.update import accumulate
from tests.helpers import random_rows

LORA = AdapterConfig(kind="lora", rank=2)


def mixture(seed=0, **changes):
    shape = {
        "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64, "num_experts": 4,
        "moe_intermediate_size": 16, "num_experts_per_tok": 2, "initializer_range": 0.2,
        "output_router_logits": True, "router_aux_loss_coef": 0.1, "max_position_embeddings": 64,
    }  # fmt: skip
    with forked_rng():
        torch.manual_seed(seed)
        return Qwen3MoeForCausalLM(Qwen3MoeConfig(**{**shape, **changes}))


def policy_of(model, *, flat=True):
    return Policy(model, choose("none", torch.device("cpu"))[0], flat=flat).train()


def adapted(cfg=LORA, source=None, model=None):
    return attach_adapters(model or mixture(), source or ModelSource("x"), cfg, 0)


def shake(adapters):
    for name, param in adapters.model.named_parameters():
        if "lora_B" in name:
            param.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))


def test_all_linear_means_the_experts_too(tmp_path):
    adapters = adapted()
    on = {name for name, _ in adapters.model.named_parameters() if ".layers.0." in name}
    on = {name.partition(".layers.0.")[2] for name in on if "lora_A" in name}
    assert on == {
        *(f"self_attn.{name}_proj.lora_A.default.weight" for name in "qkvo"),
        "mlp.experts.lora_A.default.weight",
        "mlp.experts.base_layer.lora_A.default.weight",
    }
    shake(adapters)
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        expected = adapters.model(input_ids=tokens).logits
        plain = mixture()(input_ids=tokens).logits
        adapters.save(tmp_path)
        again = PeftModel.from_pretrained(mixture(), tmp_path)(input_ids=tokens).logits
        ours = adapted(AdapterConfig(), ModelSource("x", (tmp_path,))).model
        loaded = ours(input_ids=tokens).logits
        merged = merge_adapters(ours)(input_ids=tokens).logits
    assert not torch.allclose(plain, expected, atol=1e-2)
    assert_close(again, expected)
    assert_close(loaded, expected)
    assert_close(merged, expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_on_experts_stands_on_another(tmp_path):
    below = adapted()
    shake(below)
    below.save(tmp_path)
    both = adapted(AdapterConfig(kind="lora", rank=4, start="stack"), ModelSource("x", (tmp_path,)))
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        expected = below.model(input_ids=tokens).logits
        assert_close(both.model(input_ids=tokens).logits, expected)
        shake(both)
        assert not torch.allclose(both.model(input_ids=tokens).logits, expected, atol=1e-2)
        with both.use("reference"):
            changed = [n for n, _ in both.model.named_parameters() if "stacked_0" in n]
            assert changed
    trained = {name for name, param in both.model.named_parameters() if param.requires_grad}
    assert trained == {name for name in trained if ".default." in name}


@pytest.mark.parametrize("cfg", [{"kind": "dora"}, {"kind": "lora", "dropout": 0.1}])
def test_where_peft_has_no_adapter_for_experts_they_get_none_and_it_is_said(cfg, capsys):
    adapters = adapted(AdapterConfig(rank=2, **cfg))
    assert not any("experts" in n and "lora_" in n for n, _ in adapters.model.named_parameters())
    assert "adapter: the experts get none (adapter." in capsys.readouterr().err
    with pytest.raises(ModelError, match="got down_proj, which are experts, with adapter"):
        adapted(AdapterConfig(rank=2, targets=["down_proj"], **cfg))


def test_experts_have_names_like_layers():
    adapters = adapted(AdapterConfig(kind="lora", rank=2, targets=["q_proj", "experts.down_proj"]))
    on = [name for name, _ in adapters.model.named_parameters() if "lora_" in name]
    ends = {name.split(".lora_")[0].partition(".layers.")[2][2:] for name in on}
    assert ends == {"self_attn.q_proj", "mlp.experts"}


def test_even_routing_costs_as_much_as_experts_a_token():
    tokens = torch.tensor([3.0, 5.0])
    chosen = tokens[:, None] * torch.full((2, 4), 2 / 4)
    share = tokens[:, None] * torch.full((2, 4), 1 / 4)
    assert_close(load_balancing_loss(chosen, share, tokens), torch.tensor(2.0))


@pytest.mark.parametrize("flat", [True, False])
def test_the_balancing_loss_is_that_of_transformers(flat):
    policy = policy_of(mixture(), flat=flat)
    rows = random_rows([7])
    out = policy(rows, want=("logp", "router"))
    expected = mixture()(input_ids=rows.tokens[None]).aux_loss
    assert_close(load_balancing_loss(**vars(out.router)), expected)
    two = random_rows([4, 7])  # padding is left out
    out = policy(two, want=("logp", "router")).router
    apart = [policy(row, want=("logp", "router")).router for row in two.split()]
    assert_close(out.share, torch.cat([row.share for row in apart]))


def gradients(*steps):
    policy = policy_of(mixture())
    optimizer = MasterAdamW(policy, TrainConfig(), torch.float32)
    found = accumulate(list(steps), balanced_loss(policy, 0.1), optimizer)
    return found, {n: g.clone() for n, g in optimizer.gradients().items()}


def test_the_loss_does_not_depend_on_how_a_step_is_cut():
    whole = random_rows([4, 7, 9, 5])
    (one, first), (many, second) = gradients(whole), gradients(*whole.split())
    assert_close(one.loss, many.loss)
    assert first.keys() == second.keys()
    for name in first:
        assert_close(first[name], second[name], atol=1e-5, rtol=1e-4)
    balance, count = many.metrics["router/balance_loss"]
    assert (count, math.isfinite(float(balance))) == (1, True)
    assert any("gate.weight" in name and grad.any() for name, grad in first.items())


@pytest.mark.parametrize(
    ("changes", "added", "line"),
    [
        ({}, True, "router: its balancing loss is added, times 0.1 (router_aux_loss_coef)"),
        ({}, False, "not added (it is a part of the loss of sft and pretrain alone)"),
        ({"output_router_logits": False}, True,
         "not added (output_router_logits is false in the model's config)"),
    ],
)  # fmt: skip
def test_it_is_said_whether_the_loss_is_added(changes, added, line, capsys):
    model = mixture(**changes)
    report_balancing_loss(model, added=added)
    assert line in capsys.readouterr().err
    assert balancing_loss_coef(model) == (0 if changes else 0.1)

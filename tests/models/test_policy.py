import copy

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlhf_cli.errors import ModelError
from rlhf_cli.kernels.lm_head import LMHead
from rlhf_cli.kernels.registry import choose
from rlhf_cli.models import attention
from rlhf_cli.models import policy as policy_module
from rlhf_cli.models.attention import RowLayout, per_row_attention
from rlhf_cli.models.load import disable_dropout
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.probes import probe
from tests.helpers import random_rows, tiny_llama

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
NEOX = {key: value for key, value in SHAPE.items() if key != "num_key_value_heads"}
GPT2 = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1}
ARCHITECTURES = {
    "llama": LlamaConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE),
    "mistral, sliding window": MistralConfig(**SHAPE, sliding_window=4),
    "gemma2": Gemma2Config(
        **SHAPE,
        head_dim=8,
        sliding_window=4,
        final_logit_softcapping=5.0,
        attn_logit_softcapping=3.0,
    ),
    "gpt2": GPT2Config(**GPT2, eos_token_id=2, initializer_range=0.2),
    "gpt_neox": GPTNeoXConfig(**NEOX),
}
CPU = torch.device("cpu")


def make_policy(config, *, flat, kernels="auto"):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config))  # which names the attention
    disable_dropout(model)
    return Policy(model.train(), choose(kernels, CPU)[0], flat=flat)


def full_logprobs(policy, rows):
    """Each row alone, float64 log-softmax over the model's own logits."""
    policy.model.set_attn_implementation("eager")
    parts = []
    for row in rows.tokens.split(rows.lengths.tolist()):
        logits = policy.model(input_ids=row[None], use_cache=False).logits[0].double()
        parts.append(logits.log_softmax(-1)[:-1].gather(1, row[1:, None]).squeeze(1))
    return torch.cat(parts).float()


def relative_error(got, expected):
    """Largest difference over the largest value; a key bias, say, has no gradient but rounding."""
    return float((got - expected).detach().abs().max() / expected.detach().abs().max().clamp(1e-2))


def gradient(policy, logp):
    policy.zero_grad()
    (logp * torch.linspace(0.5, 1.5, len(logp))).sum().backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters()}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("kernels", ["auto", "none"])
def test_packed_rows_equal_rows_alone(name, kernels):
    """To 1e-6 of the largest value: fp32 rounding."""
    policy = make_policy(ARCHITECTURES[name], flat=True, kernels=kernels)
    rows = random_rows([7, 1, 12, 5, 30])
    packed = policy(rows).logp
    packed_gradient = gradient(policy, packed)
    alone = full_logprobs(policy, rows)
    assert relative_error(packed, alone) < 1e-6
    for key, expected in gradient(policy, alone).items():
        assert relative_error(packed_gradient[key], expected) < 1e-5, key


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_padded_equals_flat(name):
    rows = random_rows([7, 12, 5])
    flat = make_policy(ARCHITECTURES[name], flat=True)(rows).logp
    padded = make_policy(ARCHITECTURES[name], flat=False)(rows).logp
    assert_close(flat, padded, rtol=1e-6, atol=5e-6)


@pytest.mark.parametrize("lengths", [(600,), (3, 3, 3), (2, 9, 40, 41), (520, 4)])
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("products", [True, False])
def test_every_path_of_per_row_attention_equals_a_masked_whole(
    lengths, window, products, monkeypatch
):
    monkeypatch.setattr(attention, "_products_are_faster", lambda tensor, length: products)
    generator = torch.Generator().manual_seed(0)
    size = sum(lengths)
    q, k, v = (torch.randn(1, h, size, 8, generator=generator) for h in (4, 2, 2))
    got, _ = per_row_attention(
        torch.nn.Identity(), q, k, v, None, sliding_window=window, row_layout=RowLayout(lengths)
    )
    row = torch.repeat_interleave(torch.tensor(lengths))
    distance = torch.arange(size)[:, None] - torch.arange(size)[None, :]
    seen = (row[:, None] == row[None, :]) & (distance >= 0)
    if window:
        seen &= distance < window
    keys, values = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = (q @ keys.transpose(2, 3) * 8**-0.5).masked_fill(~seen, -torch.inf)
    assert_close(got, (scores.softmax(-1) @ values).transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths", [(36, 36, 36, 36), (180, 170), (500,)])
@pytest.mark.parametrize("products", [True, False])
def test_bf16_attention_is_near_fp32_by_products_and_by_sdpa(lengths, products, monkeypatch):
    """Values and gradients to 1.2 % of the largest: what bf16 rounds in either."""
    monkeypatch.setattr(attention, "_products_are_faster", lambda tensor, length: products)
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(1, 6, sum(lengths), 48, generator=generator) for _ in range(3)]
    weights = torch.randn(1, sum(lengths), 6, 48, generator=generator)

    def run(dtype):
        inputs = [tensor.to(dtype).requires_grad_() for tensor in drawn]
        layout = RowLayout(lengths)
        out, _ = per_row_attention(torch.nn.Identity(), *inputs, None, row_layout=layout)
        return [out, *torch.autograd.grad((out.float() * weights).sum(), inputs)]

    for got, expected in zip(run(torch.bfloat16), run(torch.float32), strict=True):
        assert relative_error(got.detach().float(), expected.detach()) < 0.012


def test_short_rows_of_like_length_are_computed_together():
    groups = RowLayout((10, 12, 13, 30, 200, 200)).groups
    assert [group.lengths for group in groups] == [(10, 12, 13), (30,), (200,), (200,)]
    assert {group.follows for group in groups} == {-1}


def test_rows_that_go_on_from_one_are_computed_together_where_they_are_alike():
    lengths, follows = (50, 50, 20, 22, 90, 7), (-1, -1, 1, 1, 1, -1)
    groups = RowLayout(lengths, follows).groups
    assert [group.lengths for group in groups] == [(50,), (50,), (20, 22), (90,), (7,)]
    assert [group.follows for group in groups] == [-1, -1, 1, 1, -1]


def test_per_row_attention_refuses_a_padded_batch():
    q = torch.ones(1, 1, 2, 4)
    with pytest.raises(ValueError, match="row_layout"):
        per_row_attention(torch.nn.Identity(), q, q, q, None)


def test_the_tap_leaves_the_model_as_it_was():
    policy = make_policy(ARCHITECTURES["llama"], flat=True)
    policy(random_rows([4]))
    assert "forward" not in vars(policy.model.lm_head)
    policy.model.set_attn_implementation("sdpa")
    assert policy.model(input_ids=torch.tensor([[1, 2]])).logits.shape == (1, 2, 97)


def test_no_logits_of_a_whole_batch_exist(monkeypatch):
    policy = make_policy(LlamaConfig(**SHAPE), flat=True)
    rows = random_rows([40, 50])
    seen = []
    policy.model.lm_head.register_forward_hook(lambda m, i, out: seen.append(out.numel()))
    policy(rows)
    assert seen == [0]


def test_probe_passes_and_says_so(capsys):
    probe(make_policy(ARCHITECTURES["gemma2"], flat=True), may_fall_back=False)
    assert "rows kept apart" in capsys.readouterr().err


def test_probe_falls_back_where_rows_see_each_other(capsys):
    policy = make_policy(BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4), flat=True)
    probe(policy, may_fall_back=True)
    assert not policy.flat
    assert "a row sees the rows before it" in capsys.readouterr().err


def test_probe_refuses_by_name_when_it_may_not_fall_back():
    policy = make_policy(BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4), flat=True)
    with pytest.raises(ModelError, match="BloomForCausalLM"):
        probe(policy, may_fall_back=False)


def test_probe_catches_a_missing_soft_cap(monkeypatch):
    policy = make_policy(ARCHITECTURES["gemma2"], flat=True)
    monkeypatch.setattr(
        "rlhf_cli.models.policy.read_head", lambda model: LMHead(model.lm_head.weight)
    )
    with pytest.raises(ModelError, match="log-probs differ"):
        probe(policy, may_fall_back=True)


def test_recomputed_activations_give_the_same_gradient():
    from rlhf_cli.models.load import enable_activation_checkpointing

    rows = random_rows([9, 14])
    plain = Policy(tiny_llama().train(), choose("auto", CPU)[0], flat=True)
    expected = gradient(plain, plain(rows).logp)
    saving = Policy(tiny_llama().train(), choose("auto", CPU)[0], flat=True)
    enable_activation_checkpointing(saving)
    got = gradient(saving, saving(rows).logp)
    for name, value in expected.items():
        assert_close(got[name], value, rtol=1e-6, atol=1e-6)


FAULTS = {
    "gemma2": lambda head: LMHead(head.weight),  # without its soft cap
    "llama": lambda head: LMHead(head.weight, scale=1.5),
}


@pytest.mark.parametrize("spread", [0.02, 0.2])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_probe_takes_no_rounding_of_bf16_for_a_fault(name, spread, capsys):
    config = copy.deepcopy(ARCHITECTURES[name])
    config.initializer_range = spread
    policy = make_policy(config, flat=True).bfloat16()
    probe(policy, may_fall_back=False)
    assert policy.flat
    said = "log-probs and gradients equal the model's own in bf16 with attention per_row; rows kept"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", FAULTS)
def test_probe_finds_a_fault_of_the_output_layer_in_bf16(name, monkeypatch):
    policy = make_policy(ARCHITECTURES[name], flat=True).bfloat16()
    real = policy_module.read_head
    monkeypatch.setattr(policy_module, "read_head", lambda model: FAULTS[name](real(model)))
    with pytest.raises(ModelError, match=r"log-probs differ by .*, more than 0\.15"):
        probe(policy, may_fall_back=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probe_finds_another_scale_of_attention(dtype, monkeypatch):
    policy = make_policy(ARCHITECTURES["llama"], flat=True).to(dtype)
    real = ALL_ATTENTION_FUNCTIONS[attention.ATTENTION]

    def sharper(*args, **kwargs):
        return real(*args, **kwargs | {"scaling": 2 * kwargs["scaling"]})

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, attention.ATTENTION, sharper)
    with pytest.raises(ModelError, match="differ by"):
        probe(policy, may_fall_back=False)


def test_probe_accepts_a_model_that_gives_all_tokens_the_same():
    policy = make_policy(ARCHITECTURES["gpt2"], flat=True)
    torch.nn.init.zeros_(policy.model.lm_head.weight)
    probe(policy, may_fall_back=False)

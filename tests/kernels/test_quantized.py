"""Log-probs of a quantized output layer equal those of its dequantized weight."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rlhf_cli.errors import KernelError
from rlhf_cli.kernels import chunked, eager
from rlhf_cli.kernels.lm_head import LMHead
from rlhf_cli.kernels.registry import LINEAR_LOGPROBS, choose
from rlhf_cli.logprobs import WANTS
from rlhf_cli.models.quantize import quantized_weight
from tests.kernels.quantized_layers import KINDS, dequantized, quantized_layer
from tests.stages.test_memory import Largest

CPU = torch.device("cpu")
READERS = [i for i in LINEAR_LOGPROBS if i.reads_quantized]
ALL = frozenset(WANTS)


def problem(kind, tokens, width, vocab, seed=0):
    """Hidden states, the head quantized and dequantized, targets."""
    generator = torch.Generator().manual_seed(seed)
    layer = quantized_layer(kind, torch.randn(vocab, width, generator=generator))
    hidden = torch.randn(tokens, width, generator=generator) / width**0.5
    bias = torch.randn(vocab, generator=generator)
    targets = torch.randint(0, vocab, (tokens,), generator=generator)
    heads = [
        LMHead(weight, bias, softcap=9.0)
        for weight in (quantized_weight(layer), dequantized(layer))
    ]
    return hidden, *heads, targets


def values_and_gradient(run, hidden, head, targets):
    hidden = hidden.clone().requires_grad_()
    out = run(hidden, head, targets, temperature=0.8, want=ALL)
    loss = (out.logp * torch.arange(1.0, len(targets) + 1)).sum() + out.entropy.sum()
    return out, torch.autograd.grad(loss, hidden)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("implementation", READERS, ids=lambda i: i.name)
@settings(max_examples=15, deadline=None)
@given(
    tokens=st.integers(1, 9),
    blocks=st.integers(1, 3),
    vocab=st.integers(2, 300),
    seed=st.integers(0, 99),
)
def test_equals_the_dequantized_weight(implementation, kind, tokens, blocks, vocab, seed):
    hidden, packed, whole, targets = problem(kind, tokens, 64 * blocks, vocab, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(chunked.TILE_BYTES, "cpu", 1)  # 64 columns a tile
        patch.setattr("rlhf_cli.kernels.lm_head.DEQUANTIZED_BYTES", 1)  # one row at a time
        got, gradient = values_and_gradient(implementation.run, hidden, packed, targets)
    expected, of_whole = values_and_gradient(eager.linear_logprobs, hidden, whole, targets)
    for name in ALL - {"top1"}:
        assert_close(getattr(got, name), getattr(expected, name), rtol=1e-5, atol=1e-5)
    assert_close(gradient, of_whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_rows_come_in_the_compute_type(kind):
    width = 37 if kind == "int8" else 64
    layer = quantized_layer(kind, torch.randn(130, width))
    rows = quantized_weight(layer).dequantize(3, 70, torch.bfloat16)
    assert_close(rows, dequantized(layer)[3:70].bfloat16(), rtol=2**-7, atol=0)  # one bit of bf16


@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_is_never_dequantized_whole(kind):
    """Neither where log-probs have gradients, nor where logits of the next token are wanted."""
    tokens, width, vocab = 2, 256, 40_000
    hidden, packed, _, targets = problem(kind, tokens, width, vocab)
    with Largest() as largest:
        values_and_gradient(chunked.linear_logprobs, hidden, packed, targets)
        with torch.no_grad():
            eager.compute_logits(hidden, packed)
    assert largest.elements >= tokens * vocab
    assert largest.elements <= (16 << 20) / 4 < vocab * width / 2


def test_triton_is_not_chosen_for_a_quantized_layer(monkeypatch):
    triton = LINEAR_LOGPROBS[0]
    monkeypatch.setattr(
        "rlhf_cli.kernels.registry.LINEAR_LOGPROBS",
        (type(triton)("triton", triton.run, lambda device: "", reads_quantized=False), *READERS),
    )
    assert choose("auto", CPU)[0].name == "triton"
    implementation, reason = choose("auto", CPU, quantized=True)
    assert (implementation.name, reason) == ("chunked", "triton: the output layer is quantized")
    with pytest.raises(KernelError, match="triton: the output layer is quantized"):
        choose(["triton"], CPU, quantized=True)

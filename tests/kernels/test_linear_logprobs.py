from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rlhf_cli.config.schema import field_types
from rlhf_cli.errors import KernelError
from rlhf_cli.kernels import chunked, eager
from rlhf_cli.kernels.lm_head import LMHead
from rlhf_cli.kernels.registry import LINEAR_LOGPROBS, choose
from rlhf_cli.logprobs import WANTS, sum_by_row, token_logprobs
from rlhf_cli.models.config import LIGER, LoadConfig

CPU = torch.device("cpu")
FAST = [i for i in LINEAR_LOGPROBS if i.name != "eager" and not i.unavailable_reason(CPU)]
ALL = frozenset(WANTS)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """64 columns a tile, so that a small vocabulary has several and a ragged last one."""
    monkeypatch.setitem(chunked.TILE_BYTES, "cpu", 1)


def problem(tokens, width, vocab, dtype=torch.float64, seed=0, **head):
    generator = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    parts = (make(tokens, width), make(vocab, width), make(vocab))
    hidden, weight, bias = (part.to(dtype).requires_grad_() for part in parts)
    targets = torch.randint(0, vocab, (tokens,), generator=generator)
    return hidden, LMHead(weight, bias, **head), targets


def gradients(run, hidden, head, targets, upstream, temperature):
    out = run(hidden, head, targets, temperature=temperature, want=ALL)
    loss = sum(
        (value * g.to(value.dtype)).sum()
        for value, g in zip((out.logp, out.entropy, out.lse), upstream, strict=True)
    )
    return out, torch.autograd.grad(loss, (hidden, head.weight, head.bias))


@pytest.mark.parametrize("implementation", FAST, ids=lambda i: i.name)
@pytest.mark.parametrize(
    "head", [{}, {"scale": 0.3}, {"softcap": 3.0}, {"scale": 0.5, "softcap": 2.0}], ids=str
)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_eager_in_float64(implementation, head, temperature):
    hidden, layer, targets = problem(8, 5, 333, **head)
    upstream = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected, expected_grad = gradients(
        eager.linear_logprobs, hidden, layer, targets, upstream, temperature
    )
    got, got_grad = gradients(implementation.run, hidden, layer, targets, upstream, temperature)
    for name in ALL:
        assert_close(getattr(got, name), getattr(expected, name), rtol=1e-12, atol=1e-12)
    for g, e in zip(got_grad, expected_grad, strict=True):
        assert_close(g, e, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("implementation", FAST, ids=lambda i: i.name)
def test_gradcheck(implementation):
    hidden, layer, targets = problem(3, 4, 130, softcap=4.0, scale=0.7)

    def values(hidden, weight, bias):
        head = LMHead(weight, bias, layer.scale, layer.softcap)
        out = implementation.run(hidden, head, targets, temperature=0.9, want=ALL)
        return out.logp, out.entropy, out.lse

    assert torch.autograd.gradcheck(values, (hidden, layer.weight, layer.bias))


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 20),
    width=st.integers(1, 9),
    vocab=st.integers(2, 300),
    seed=st.integers(0, 99),
)
def test_any_shape_equals_float64_full_logits(tokens, width, vocab, seed):
    hidden, head, targets = problem(tokens, width, vocab, torch.float32, seed)
    got = token_logprobs(hidden, head, targets)
    z = hidden.double() @ head.weight.double().T + head.bias.double()
    expected = z.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    assert got.logp.dtype == torch.float32
    assert_close(got.logp.double(), expected, rtol=1e-5, atol=2e-5)  # fp32 rounding of |z| < 100
    got.logp.sum().backward()
    assert hidden.grad is not None
    assert head.weight.grad.isfinite().all()


def test_bf16_error_is_that_of_plain_bf16_logits():
    hidden, head, targets = problem(64, 48, 500, torch.bfloat16)
    exact = eager.linear_logprobs(
        hidden.double(),
        LMHead(head.weight.double(), head.bias.double()),
        targets,
        temperature=1.0,
        want=frozenset(),
    ).logp
    plain = eager.linear_logprobs(hidden, head, targets, temperature=1.0, want=frozenset()).logp
    got = token_logprobs(hidden, head, targets).logp
    assert (got - exact).abs().mean() <= 1.1 * (plain - exact).abs().mean()


def test_a_frozen_weight_gets_no_gradient_and_costs_none(monkeypatch):
    hidden, head, targets = problem(6, 5, 200)
    frozen = LMHead(head.weight.detach(), head.bias.detach())
    token_logprobs(hidden, frozen, targets).logp.sum().backward()
    assert hidden.grad is not None
    assert frozen.weight.grad is None


def test_uniform_logits_give_ln_v():
    head = LMHead(torch.zeros(300, 4))
    out = token_logprobs(torch.ones(2, 4), head, torch.tensor([0, 299]), want=ALL)
    ln_v = torch.full((2,), 300.0).log()
    assert_close(out.logp, -ln_v)
    assert_close(out.entropy, ln_v)
    assert_close(out.sum_sq, torch.full((2,), 1 / 300))


def test_very_large_logits_stay_finite():
    hidden = torch.tensor([[1e4]], requires_grad=True)
    head = LMHead(torch.linspace(-1, 1, 200)[:, None].requires_grad_())
    out = token_logprobs(hidden, head, torch.tensor([199]), want=ALL)
    out.logp.sum().backward()
    assert_close(out.logp, torch.zeros(1), atol=1e-5, rtol=0)
    assert head.weight.grad.isfinite().all()


def test_unknown_want_is_refused():
    with pytest.raises(ValueError, match="entropi"):
        token_logprobs(
            torch.ones(1, 2), LMHead(torch.ones(3, 2)), torch.tensor([0]), want=["entropi"]
        )


def test_choice_says_why():
    implementation, reason = choose("auto", CPU)
    assert (implementation.name, reason) == ("chunked", "triton: needs CUDA")
    assert choose("none", CPU)[0].name == "eager"


def test_a_list_allows_only_what_it_names():
    assert choose(["eager", "chunked"], CPU)[0].name == "chunked"
    assert choose(["eager"], CPU)[0].name == "eager"
    with pytest.raises(KernelError, match=r"got \[triton\], of which none .*triton: needs CUDA"):
        choose(["triton"], CPU)


def test_the_key_takes_the_names_of_the_registry():
    kinds = [get_args(kind) for kind in get_args(field_types(LoadConfig)["kernels"])]
    assert kinds[0] == ("auto", "none")
    assert get_args(kinds[1][0]) == (*(i.name for i in LINEAR_LOGPROBS), LIGER)


def test_sum_by_row():
    values = torch.tensor([1.0, 2.0, 4.0])
    assert_close(sum_by_row(values, torch.tensor([0, 2, 2]), 3), torch.tensor([1.0, 0.0, 6.0]))

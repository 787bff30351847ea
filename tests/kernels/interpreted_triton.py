"""The Triton implementation beside eager in Triton's interpreter, which runs kernels on a CPU.

test_triton.py runs this file in a process of its own, since the interpreter has to be chosen before
Triton is imported. By hand: TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted_triton.py
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from rlhf_cli.errors import KernelError
from rlhf_cli.kernels import eager
from rlhf_cli.kernels.lm_head import LMHead
from rlhf_cli.kernels.registry import LINEAR_LOGPROBS
from rlhf_cli.kernels.triton import args, forward, function
from rlhf_cli.kernels.triton.function import linear_logprobs
from tests.helpers import random_rows
from tests.kernels.test_linear_logprobs import ALL, gradients
from tests.kernels.test_linear_logprobs import problem as make_problem
from tests.models.test_policy import (
    ARCHITECTURES,
    full_logprobs,
    gradient,
    make_policy,
    relative_error,
)

TILES = dict(args.TILES)
SMALL = args.Tile(tokens=16, vocab=32, width=16, warps=4, stages=2)
RAGGED = (40, 21, 100)
"""Tokens, width and vocabulary, of which none is a multiple of the tile."""


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Several tiles, two splits and two rounds of the workspace in small problems."""
    for dtype in args.TILES:
        monkeypatch.setitem(args.TILES, dtype, SMALL)
    monkeypatch.setattr(function, "WORKSPACE_BYTES", 16 << 10)


def upstream_of(tokens):
    return torch.randn(3, tokens, generator=torch.Generator().manual_seed(1))


def assert_equal_to_eager(hidden, head, targets, temperature=1.0):
    """Values and gradients, to the rounding of fp32 sums; logits are below 30 in size."""
    upstream = upstream_of(len(hidden))
    expected, expected_gradients = gradients(
        eager.linear_logprobs, hidden, head, targets, upstream, temperature
    )
    got, got_gradients = gradients(linear_logprobs, hidden, head, targets, upstream, temperature)
    for name in ALL:
        value = getattr(got, name)
        assert value.dtype == (torch.bool if name == "top1" else torch.float32)
        assert_close(value, getattr(expected, name), rtol=1e-5, atol=2e-5)
    for g, e in zip(got_gradients, expected_gradients, strict=True):
        assert_close(g, e, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize(
    "head", [{}, {"scale": 0.3}, {"softcap": 3.0}, {"scale": 0.5, "softcap": 2.0}], ids=str
)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_eager(head, temperature):
    assert_equal_to_eager(*make_problem(*RAGGED, torch.float32, **head), temperature)


@settings(max_examples=12, deadline=None)
@given(
    tokens=st.integers(0, 40),
    width=st.integers(1, 40),
    vocab=st.integers(2, 150),
    seed=st.integers(0, 99),
)
def test_equals_eager_for_any_shape(tokens, width, vocab, seed):
    assert_equal_to_eager(*make_problem(tokens, width, vocab, torch.float32, seed))


@pytest.mark.parametrize("processors", [1, 7])
def test_equals_eager_for_any_number_of_splits(processors, monkeypatch):
    monkeypatch.setattr(forward, "concurrent_programs", lambda device: processors)
    assert_equal_to_eager(*make_problem(*RAGGED, torch.float32))


def test_the_tile_of_a_gpu_equals_eager(monkeypatch):
    monkeypatch.setitem(args.TILES, torch.float32, TILES[torch.float32])
    assert_equal_to_eager(*make_problem(70, 40, 200, torch.float32))


def test_strided_operands_equal_eager():
    hidden, head, targets = make_problem(*RAGGED, torch.float32)
    strided = hidden.detach().t().contiguous().t().requires_grad_()
    weight = head.weight.detach().t().contiguous().t().requires_grad_()
    spread = targets.repeat_interleave(2)[::2]
    assert_equal_to_eager(strided, LMHead(weight, head.bias), spread)


def test_no_tokens_are_differentiable():
    hidden, head, targets = make_problem(0, 5, 33, torch.float32)
    out = linear_logprobs(hidden, head, targets, temperature=1.0, want=ALL)
    out.logp.sum().backward()
    assert hidden.grad.shape == (0, 5)
    assert head.weight.grad.count_nonzero() == 0


def test_only_what_is_wanted_is_given_and_alike():
    hidden, head, targets = make_problem(*RAGGED, torch.float32)
    whole = linear_logprobs(hidden, head, targets, temperature=1.0, want=ALL)
    for name in ("entropy", "lse", "sum_sq", "top1"):
        one = linear_logprobs(hidden, head, targets, temperature=1.0, want=frozenset([name]))
        assert torch.equal(one.logp, whole.logp)
        assert torch.equal(getattr(one, name), getattr(whole, name))
        assert all(getattr(one, other) is None for other in ALL - {name, "logp"})


def test_only_what_is_trained_gets_a_gradient():
    hidden, head, targets = make_problem(*RAGGED, torch.float32)
    frozen = LMHead(head.weight.detach(), None)
    linear_logprobs(hidden, frozen, targets, temperature=1.0, want=ALL).logp.sum().backward()
    expected = eager.linear_logprobs(hidden, frozen, targets, temperature=1.0, want=ALL).logp
    assert_close(hidden.grad, torch.autograd.grad(expected.sum(), hidden)[0], rtol=1e-4, atol=5e-5)
    assert frozen.weight.grad is None
    fixed, both = hidden.detach(), (head.weight, head.bias)
    got = linear_logprobs(fixed, head, targets, temperature=1.0, want=ALL).logp
    expected = eager.linear_logprobs(fixed, head, targets, temperature=1.0, want=ALL).logp
    for g, e in zip(
        torch.autograd.grad(got.sum(), both), torch.autograd.grad(expected.sum(), both), strict=True
    ):
        assert_close(g, e, rtol=1e-4, atol=5e-5)


def test_a_second_run_has_the_same_bits():
    hidden, head, targets = make_problem(*RAGGED, torch.float32)
    runs = [
        gradients(linear_logprobs, hidden, head, targets, upstream_of(40), 1.0) for _ in range(2)
    ]
    (first, first_gradients), (second, second_gradients) = runs
    assert all(torch.equal(getattr(first, name), getattr(second, name)) for name in ALL)
    for one, other in zip(first_gradients, second_gradients, strict=True):
        assert torch.equal(one, other)


def test_fp16_error_is_that_of_plain_fp16_logits_or_less():
    """The interpreter has no bf16 product."""
    hidden, head, targets = make_problem(64, 48, 500, torch.float16)
    exactly = LMHead(head.weight.double(), head.bias.double())
    error = {}
    for name, run in (("plain", eager.linear_logprobs), ("got", linear_logprobs)):
        out, found = gradients(run, hidden, head, targets, upstream_of(64), 1.0)
        exact, wanted = gradients(
            eager.linear_logprobs, hidden.double(), exactly, targets, upstream_of(64).double(), 1.0
        )
        pairs = [(out.logp, exact.logp), *zip(found, wanted, strict=True)]
        error[name] = [float((a.detach() - b.detach()).abs().mean()) for a, b in pairs]
        assert all(g.dtype == torch.float16 for g in found)
    assert all(g <= 1.1 * p for g, p in zip(error["got"], error["plain"], strict=True))


def test_the_gradient_of_a_sure_target_is_not_rounded_away():
    """Of a p that was rounded to fp16, hence to 1, nothing would be left in 1 - p = 7e-5."""
    hidden = torch.tensor([[9.5]], dtype=torch.float16, requires_grad=True)
    head = LMHead(torch.tensor([[1.0], [0.0]], dtype=torch.float16))
    out = linear_logprobs(hidden, head, torch.tensor([0]), temperature=1.0, want=frozenset())
    out.logp.sum().backward()
    expected = torch.sigmoid(torch.tensor(-9.5))  # 1 - p
    assert_close(hidden.grad.float().squeeze(), expected, rtol=1e-2, atol=0)


def test_uniform_logits_give_ln_v_and_the_first_token_as_likeliest():
    head = LMHead(torch.zeros(300, 4))
    out = linear_logprobs(torch.ones(2, 4), head, torch.tensor([0, 299]), temperature=1.0, want=ALL)
    ln_v = torch.full((2,), 300.0).log()
    assert_close(out.logp, -ln_v)
    assert_close(out.entropy, ln_v)
    assert_close(out.sum_sq, torch.full((2,), 1 / 300))
    assert out.top1.tolist() == [True, False]


def test_very_large_logits_stay_exact():
    hidden = torch.tensor([[1e4]], requires_grad=True)
    head = LMHead(torch.linspace(-1, 1, 200)[:, None].requires_grad_())
    out = linear_logprobs(hidden, head, torch.tensor([199]), temperature=1.0, want=ALL)
    (out.logp + out.entropy).sum().backward()
    assert_close(out.logp, torch.zeros(1), atol=1e-5, rtol=0)
    assert_close(out.entropy, torch.zeros(1), atol=1e-5, rtol=0)
    assert head.weight.grad.isfinite().all()


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # NumPy's, in the interpreter
def test_nan_hidden_states_give_nan():
    hidden, head, targets = make_problem(3, 5, 100, torch.float32)
    broken = hidden.detach().clone()
    broken[1, 2] = torch.nan
    out = linear_logprobs(broken, head, targets, temperature=1.0, want=ALL)
    assert out.logp.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_policy_gives_the_models_own_logprobs(name):
    """As in tests/models: to 1e-6 of the largest log-prob, fp32 rounding; gradients to 1e-5."""
    policy = make_policy(ARCHITECTURES[name], flat=True)
    policy.implementation = next(i for i in LINEAR_LOGPROBS if i.name == "triton")
    rows = random_rows([7, 1, 12, 5])
    ours = policy(rows).logp
    found = gradient(policy, ours)
    own = full_logprobs(policy, rows)
    assert relative_error(ours, own) < 1e-6
    for key, expected in gradient(policy, own).items():
        assert relative_error(found[key], expected) < 1e-5, key


@pytest.mark.parametrize("dtypes", [(torch.float64,) * 2, (torch.bfloat16, torch.float32)], ids=str)
def test_other_types_are_refused(dtypes):
    hidden, weight = (torch.ones(2, 3, dtype=dtype) for dtype in dtypes)
    with pytest.raises(KernelError, match="bfloat16, float16 or float32"):
        linear_logprobs(hidden, LMHead(weight), torch.zeros(2).long(), temperature=1.0, want=ALL)

"""The chunked divergence against autograd of the plain formula over whole logits."""

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.kernels import divergence as kernel
from rlhf_cli.kernels.divergence import OutputStates, chunk_tokens, linear_divergence
from rlhf_cli.kernels.eager import compute_logits
from rlhf_cli.kernels.lm_head import EightBitWeight, LMHead
from rlhf_cli.losses.distillation import DIVERGENCES, Divergence, token_divergence

VOCAB = 37


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Three tokens a chunk, so that 8 tokens have several and a ragged last one."""
    monkeypatch.setattr(kernel, "MIN_CHUNK", 3)
    monkeypatch.setitem(kernel.CHUNK_BYTES, "cpu", 1)


def states(tokens=8, width=5, dtype=torch.float64, seed=0, **head):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((tokens, width), (VOCAB, width), (VOCAB,))
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes
    )
    return OutputStates(hidden, LMHead(weight, bias, **head))


def plain(student, teacher, divergence):
    """[S]: the formula over whole logits."""
    with torch.no_grad():
        theirs = compute_logits(teacher.hidden, teacher.head, divergence.temperature)
    own = compute_logits(student.hidden, student.head, divergence.temperature)
    return token_divergence(own.log_softmax(-1), theirs.log_softmax(-1), divergence)


def inputs(found):
    return found.hidden, found.head.weight, found.head.bias


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize(
    "head", [{}, {"scale": 0.3}, {"softcap": 3.0}, {"scale": 0.5, "softcap": 2.0}], ids=str
)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_the_plain_formula_in_float64(kind, head, temperature):
    student, teacher = states(**head), states(width=9, seed=1)
    divergence = Divergence(kind, 0.3, temperature)
    expected = plain(student, teacher, divergence)
    wanted = torch.autograd.grad(1.7 * expected.sum(), inputs(student))
    found = linear_divergence(student, teacher, divergence)
    got = torch.autograd.grad(1.7 * found.total, inputs(student))
    assert_close(found.tokens, expected.detach(), rtol=1e-12, atol=1e-13)
    assert_close(found.total, expected.sum(), rtol=1e-12, atol=1e-12)
    for g, e in zip(got, wanted, strict=True):
        assert_close(g, e, rtol=1e-10, atol=1e-12)


def test_the_teacher_gets_no_gradient_and_frozen_weights_cost_none():
    student, teacher = states(), states(seed=1)
    frozen = OutputStates(
        student.hidden, LMHead(student.head.weight.detach(), student.head.bias.detach())
    )
    linear_divergence(frozen, teacher, Divergence("jsd")).total.backward()
    assert student.hidden.grad is not None
    assert all(tensor.grad is None for tensor in inputs(teacher))


def test_without_gradients_none_are_computed(monkeypatch):
    monkeypatch.setattr(kernel, "divergence_gradient", None)
    with torch.no_grad():
        found = linear_divergence(states(), states(seed=1), Divergence("reverse_kl"))
    assert not found.total.requires_grad


def test_no_tokens_give_zero_that_can_be_differentiated():
    student, teacher = states(tokens=0), states(tokens=0, seed=1)
    found = linear_divergence(student, teacher, Divergence("reverse_kl"), ["agreement"])
    found.total.backward()
    assert found.total == 0
    assert found.extra["agreement"].shape == (0,)
    assert not student.head.weight.grad.any()


def test_further_values_do_not_depend_on_the_loss():
    student, teacher = states(), states(seed=1)
    want = ["reverse_kl", "forward_kl", "entropy", "agreement"]
    found = linear_divergence(student, teacher, Divergence("jsd", 0.2, 0.8), want)
    for kind in ("reverse_kl", "forward_kl"):
        expected = plain(student, teacher, Divergence(kind, temperature=0.8)).detach()
        assert_close(found.extra[kind], expected)
    logprobs = compute_logits(student.hidden, student.head, 0.8).log_softmax(-1)
    assert_close(found.extra["entropy"], -(logprobs.exp() * logprobs).sum(-1).detach())
    own = compute_logits(student.hidden, student.head).argmax(-1)
    theirs = compute_logits(teacher.hidden, teacher.head).argmax(-1)
    assert found.extra["agreement"].tolist() == (own == theirs).double().tolist()


def test_quantized_output_layers_are_read_in_rows(monkeypatch):
    monkeypatch.setattr("rlhf_cli.kernels.lm_head.DEQUANTIZED_BYTES", 5 * 4 * 10)
    generator = torch.Generator().manual_seed(2)
    values = torch.randint(-127, 128, (VOCAB, 5), generator=generator, dtype=torch.int8)
    packed = EightBitWeight(values, torch.linspace(0.5, 2, VOCAB))
    dense = packed.dequantize(0, VOCAB, torch.float32)
    hidden, teacher = torch.randn(7, 5, generator=generator), states(7, dtype=torch.float32)
    found = []
    for weight in (packed, dense):
        own = hidden.clone().requires_grad_()
        student = OutputStates(own, LMHead(weight))
        out = linear_divergence(student, teacher, Divergence("forward_kl"))
        out.total.backward()
        found.append((out.tokens, own.grad))
    assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_bf16_gradients_of_the_weight_are_summed_in_fp32():
    exact = states(tokens=64)
    teacher = states(tokens=64, seed=1)
    small = OutputStates(
        exact.hidden.detach().bfloat16(),
        LMHead(exact.head.weight.detach().bfloat16().requires_grad_()),
    )
    rounded = OutputStates(
        small.hidden.double(), LMHead(small.head.weight.detach().double().requires_grad_())
    )
    for student in (small, rounded):
        linear_divergence(student, teacher, Divergence("reverse_kl")).total.backward()
    expected = rounded.head.weight.grad
    error = (small.head.weight.grad.double() - expected).norm() / expected.norm()
    assert error < 2**-7  # a few roundings to the 8 bits of bf16, not one per chunk


def test_output_layers_of_different_sizes_are_refused():
    other = OutputStates(torch.ones(8, 2), LMHead(torch.ones(VOCAB + 1, 2)))
    with pytest.raises(ValueError, match="37 and 38 rows"):
        linear_divergence(states(dtype=torch.float32), other, Divergence("jsd"))
    with pytest.raises(ValueError, match="entropi"):
        linear_divergence(states(), states(), Divergence("jsd"), ["entropi"])


def test_a_chunk_of_a_real_vocabulary_has_a_bounded_size(monkeypatch):
    monkeypatch.undo()
    bytes_of_chunk = kernel.TENSORS * 4 * 151_936 * chunk_tokens(151_936, "cuda")
    assert 0.9 * kernel.CHUNK_BYTES["cuda"] < bytes_of_chunk <= kernel.CHUNK_BYTES["cuda"]
    assert chunk_tokens(151_936, "cpu") == kernel.MIN_CHUNK

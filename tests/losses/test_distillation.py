"""Divergences of distillation against numbers worked out by hand, and against TRL's."""

import math

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.losses.distillation import (
    DIVERGENCES,
    Divergence,
    divergence_gradient,
    sampled_reverse_kl_loss,
    token_divergence,
)

HALF = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
QUARTER = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log()


def random_logprobs(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).log_softmax(-1)


def test_kl_by_hand():
    # student (1/2, 1/2), teacher (1/4, 3/4):
    # KL(q || p) = 1/2 ln 2 + 1/2 ln (2/3); KL(p || q) = 1/4 ln (1/2) + 3/4 ln (3/2)
    reverse = token_divergence(HALF, QUARTER, Divergence("reverse_kl"))
    forward = token_divergence(HALF, QUARTER, Divergence("forward_kl"))
    assert_close(reverse.item(), 0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert_close(forward.item(), 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2))


def test_jsd_by_hand():
    # beta 0.25: m = 1/4 (1/4, 3/4) + 3/4 (1/2, 1/2) = (7/16, 9/16)
    teacher = 0.25 * math.log(4 / 7) + 0.75 * math.log(12 / 9)
    student = 0.5 * math.log(8 / 7) + 0.5 * math.log(8 / 9)
    found = token_divergence(HALF, QUARTER, Divergence("jsd", jsd_beta=0.25))
    assert_close(found.item(), 0.25 * teacher + 0.75 * student)


def test_jsd_goes_to_the_two_kls():
    student, teacher = random_logprobs(0, 3, 7), random_logprobs(1, 3, 7)
    small = 1e-6
    near_forward = token_divergence(student, teacher, Divergence("jsd", small)) / small
    near_reverse = token_divergence(student, teacher, Divergence("jsd", 1 - small)) / small
    forward = token_divergence(student, teacher, Divergence("forward_kl"))
    reverse = token_divergence(student, teacher, Divergence("reverse_kl"))
    assert_close(near_forward, forward, rtol=1e-5, atol=1e-5)
    assert_close(near_reverse, reverse, rtol=1e-5, atol=1e-5)


def test_jsd_of_one_half_is_symmetric_and_below_ln_2():
    student, teacher = random_logprobs(2, 5, 9) * 9, random_logprobs(3, 5, 9) * 9
    student, teacher = student.log_softmax(-1), teacher.log_softmax(-1)
    found = token_divergence(student, teacher, Divergence("jsd"))
    assert_close(found, token_divergence(teacher, student, Divergence("jsd")))
    assert (found < math.log(2)).all()


# `GKDTrainer.generalized_jsd_loss` of TRL 1.16.0, reduction="sum", on the logits below: beta 0 is
# its forward KL, 1 its reverse KL, and it divides both logits by the temperature
TRL = {
    ("forward_kl", 0.5, 1.0): 3.2640443499351957,
    ("reverse_kl", 0.5, 1.0): 2.4341572216423093,
    ("jsd", 0.1, 1.0): 0.2524852560547088,
    ("jsd", 0.5, 1.0): 0.5687357350916356,
    ("jsd", 0.9, 2.0): 0.0741993771934767,
    ("reverse_kl", 0.5, 0.5): 5.1632378233565035,
}


@pytest.mark.parametrize(("kind", "beta", "temperature"), TRL, ids=str)
def test_sums_are_those_of_trl(kind, beta, temperature):
    student = torch.tensor([[1.0, 2.0, -1.0, 0.5], [0.0, 0.0, 3.0, -2.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.5, 1.0, 1.5, -1.0], [2.0, -1.0, 0.0, 0.25]], dtype=torch.float64)
    found = token_divergence(
        (student / temperature).log_softmax(-1),
        (teacher / temperature).log_softmax(-1),
        Divergence(kind, beta),
    )
    assert_close(found.sum().item(), TRL[kind, beta, temperature], rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_equal_distributions_have_no_divergence_and_no_gradient(kind):
    logprobs = random_logprobs(4, 2, 6)
    zeros = torch.zeros(2, dtype=torch.float64)
    assert_close(token_divergence(logprobs, logprobs, Divergence(kind)), zeros, atol=1e-15, rtol=0)
    gradient = divergence_gradient(logprobs, logprobs, Divergence(kind))
    assert_close(gradient, torch.zeros_like(gradient), atol=1e-16, rtol=0)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_gradient_is_that_of_autograd(kind):
    logits = torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    logits.requires_grad_()
    teacher, divergence = random_logprobs(6, 4, 8), Divergence(kind, jsd_beta=0.3)
    token_divergence(logits.log_softmax(-1), teacher, divergence).sum().backward()
    found = divergence_gradient(logits.detach().log_softmax(-1), teacher, divergence)
    assert_close(found, logits.grad, rtol=1e-12, atol=1e-14)
    assert_close(found.sum(-1), torch.zeros(4, dtype=torch.float64), atol=1e-15, rtol=0)


def test_on_policy_gradient_averages_to_that_of_the_reverse_kl():
    # the expectation over all 5 tokens that the student can sample, weighed by its probabilities
    logits = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    logits.requires_grad_()
    teacher = random_logprobs(8, 5)
    logp = logits.log_softmax(-1)
    expected = (logp.detach().exp() * sampled_reverse_kl_loss(logp, teacher)).sum()
    [gradient] = torch.autograd.grad(expected, logits)
    exact = divergence_gradient(logp.detach(), teacher, Divergence("reverse_kl"))
    assert_close(gradient, exact, rtol=1e-12, atol=1e-14)
    assert_close(expected, token_divergence(logp, teacher, Divergence("reverse_kl")))


def test_on_policy_loss_by_hand():
    # log-ratio ln 2: the token is twice as likely under the student, so its advantage is -ln 2
    logp = torch.tensor([math.log(0.5)], requires_grad=True)
    loss = sampled_reverse_kl_loss(logp, torch.tensor([math.log(0.25)]))
    loss.sum().backward()
    assert_close(loss, torch.tensor([math.log(2)]))
    assert_close(logp.grad, torch.tensor([math.log(2)]))

"""The divergence of a policy from another is that of both models' own logits."""

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.kernels.lm_head import Support
from rlhf_cli.losses.distillation import Divergence, token_divergence
from tests.helpers import random_rows
from tests.models.test_policy import ARCHITECTURES, make_policy

LENGTHS = [7, 3, 12]


def whole_logits(policy, rows):
    """[S, V], fp64: each row alone, by the model's own forward pass."""
    policy.model.set_attn_implementation("eager")
    parts = [
        policy.model(input_ids=row[None], use_cache=False).logits[0, :-1].double()
        for row in rows.tokens.split(rows.row_lengths)
    ]
    return torch.cat(parts)


def policies(name, other="llama"):
    student = make_policy(ARCHITECTURES[name], flat=True)
    teacher = make_policy(ARCHITECTURES[other], flat=True).requires_grad_(False)
    for parameter in teacher.parameters():
        parameter.mul_(1.5)
    return student, teacher


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_value_and_gradient_are_those_of_whole_logits(name):
    student, teacher = policies(name)
    rows, divergence = random_rows(LENGTHS), Divergence("jsd", 0.3, temperature=0.8)
    found = student.divergence(rows, teacher.output_states(rows), divergence)
    found.total.backward()
    got = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    logprobs = [(whole_logits(policy, rows) / 0.8).log_softmax(-1) for policy in (student, teacher)]
    expected = token_divergence(*logprobs, divergence)
    expected.sum().backward()
    assert_close(found.tokens.double(), expected.detach(), rtol=1e-4, atol=1e-6)
    for parameter, gradient in student.named_parameters():
        if gradient.grad is not None:
            off = (got[parameter] - gradient.grad).abs().max()
            assert off <= 1e-4 * gradient.grad.abs().max().clamp(1e-2), parameter


def test_padding_rows_of_the_output_layer_are_left_out():
    """The student's vocabulary is padded to 97 rows of which 90 and no 5 have tokens."""
    student, teacher = policies("llama")
    support = Support(97, 90, (5,))
    student.support = teacher.support = support
    rows = random_rows(LENGTHS, vocab=90)
    found = student.divergence(rows, teacher.output_states(rows), Divergence("reverse_kl"))
    kept = [index for index in range(90) if index != 5]
    logprobs = [whole_logits(one, rows)[:, kept].log_softmax(-1) for one in (student, teacher)]
    expected = token_divergence(*logprobs, Divergence("reverse_kl")).detach()
    assert_close(found.tokens.double(), expected, rtol=1e-4, atol=1e-6)


def test_log_probs_beside_the_divergence_are_those_of_a_pass_of_their_own():
    student, teacher = policies("gemma2")
    rows = random_rows(LENGTHS)
    states = teacher.output_states(rows)
    found = student.divergence(rows, states, Divergence("forward_kl"), logprobs_at=0.7)
    assert_close(found.logp, student(rows, temperature=0.7).logp)

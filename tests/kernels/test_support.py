"""Log-probs among the ids that have a token: those of a softmax over them alone."""

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.kernels import chunked, eager
from rlhf_cli.kernels.lm_head import LMHead, Support
from rlhf_cli.logprobs import token_logprobs
from rlhf_cli.models.quantize import quantized_weight
from tests.kernels.quantized_layers import KINDS, dequantized, quantized_layer

WANT = ("logp", "entropy", "lse", "sum_sq", "top1")
SUPPORTS = [Support(13, 9), Support(13, 9, (0, 4, 5)), Support(13, 13, (2,))]


def head_of(**settings):
    torch.manual_seed(0)
    weight = torch.randn(13, 6, dtype=torch.float64, requires_grad=True)
    return LMHead(weight, torch.randn(13, dtype=torch.float64), **settings)


def masked(head, hidden, support):
    """[S, V] logits in which what is excluded has none."""
    logits = eager.compute_logits(hidden, head).clone()
    logits[:, support.excluded] = -torch.inf
    return logits


@pytest.mark.parametrize("implementation", [eager, chunked])
@pytest.mark.parametrize("settings", [{}, {"scale": 0.5, "softcap": 3.0}])
@pytest.mark.parametrize("support", SUPPORTS)
def test_excluded_ids_have_no_probability(support, settings, implementation):
    head, hidden = head_of(**settings), torch.randn(5, 6, dtype=torch.float64)
    kept = [index for index in range(13) if index not in support.excluded]
    targets = torch.tensor(kept)[torch.arange(5) % len(kept)]
    compact, places = support.compact(head, targets)
    run = implementation.linear_logprobs
    found = token_logprobs(hidden, compact, places, want=WANT, implementation=run)
    whole = masked(head, hidden, support).log_softmax(-1)
    expected = whole.gather(1, targets[:, None]).squeeze(1)
    assert_close(found.logp, expected)
    probs = whole.exp()
    assert_close(found.entropy, torch.special.entr(probs).sum(-1))
    assert_close(found.sum_sq, probs.square().sum(-1))
    assert torch.equal(found.top1, whole.argmax(-1) == targets)
    gradient = torch.autograd.grad(found.logp.sum(), head.weight)[0]
    assert_close(gradient, torch.autograd.grad(expected.sum(), head.weight)[0])
    assert not gradient[support.excluded].any()


@pytest.mark.parametrize("support", SUPPORTS)
def test_logits_for_draws_are_minus_infinity_at_what_is_excluded(support):
    head, hidden = head_of(), torch.randn(5, 6, dtype=torch.float64)
    found = support.mask(eager.compute_logits(hidden, support.sliced(head)).detach())
    assert_close(found, masked(head, hidden, support)[:, : support.stop])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("support", SUPPORTS)
def test_a_quantized_weight_is_cut_while_quantized(kind, support):
    layer = quantized_layer(kind, torch.randn(13, 64))
    hidden, targets = torch.randn(3, 64), torch.tensor([1, 3, 8])
    packed, whole = LMHead(quantized_weight(layer)), LMHead(dequantized(layer))
    for implementation in (eager, chunked):
        found = [
            token_logprobs(hidden, *support.compact(head, targets), want=WANT,
                           implementation=implementation.linear_logprobs)
            for head in (packed, whole)
        ]  # fmt: skip
        assert_close(found[0].logp, found[1].logp)
        assert_close(found[0].entropy, found[1].entropy)


def test_without_holes_no_weight_is_copied():
    head = head_of()
    compact, _ = Support(13, 9).compact(head, torch.tensor([1]))
    assert compact.weight.data_ptr() == head.weight.data_ptr()

"""Importance weights on numbers worked out by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.losses.correction import importance_weights

# ratios 2, 1/2, 4 of the first response; 3/2, 3/2 of the second, which has a token less
RATIOS = torch.tensor([[2.0, 0.5, 4.0], [1.5, 1.5, 99.0]])
SAMPLER = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -0.7, -9.0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])


def weights(**options):
    return importance_weights(SAMPLER + RATIOS.log(), SAMPLER, MASK, cap=3.0, **options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"per": "token"}, [[2, 0.5, 3], [1.5, 1.5, 1]]),
        ({"per": "token", "drop": True}, [[2, 0.5, 0], [1.5, 1.5, 1]]),
        ({"per": "sequence"}, [[3, 3, 3], [2.25, 2.25, 1]]),  # products 4 and 9/4
        ({"per": "sequence", "drop": True}, [[0, 0, 0], [2.25, 2.25, 1]]),
    ],
    ids=["token", "token-drop", "sequence", "sequence-drop"],
)
def test_weights(options, expected):
    assert_close(weights(**options), torch.tensor(expected, dtype=torch.float32))


def test_the_weight_of_what_agrees_is_one():
    same = importance_weights(SAMPLER, SAMPLER, MASK, per="sequence", cap=3.0)
    assert torch.equal(same, torch.ones(2, 3))


def test_a_weight_is_finite_however_far_apart_the_two_are():
    far = importance_weights(SAMPLER + 1e3, SAMPLER, MASK, per="sequence", cap=math.inf)
    assert far.isfinite().all()


def test_the_mean_is_that_of_the_policy():
    """E_q[w f] = E_p[f] where no weight is cut: q of two tokens (0.8, 0.2), p (0.5, 0.5)."""
    q, p, f = torch.tensor([0.8, 0.2]), torch.tensor([0.5, 0.5]), torch.tensor([1.0, 5.0])
    mask = torch.ones(1, 2, dtype=torch.bool)
    weight = importance_weights(p.log()[None], q.log()[None], mask, per="token", cap=3.0)[0]
    assert_close((q * weight * f).sum(), (p * f).sum())

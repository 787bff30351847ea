"""f-divergences in the place of DPO's reverse KL (Wang et al. 2023, arXiv:2309.16240).

Each takes s = log p - log p_ref [B], nats, and gives f'(p / p_ref) [B] up to a constant, which
cancels between the two responses of a pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn.functional import logsigmoid

MOST_EXPONENT = 80.0
"""e^80 is still finite in fp32."""

Divergence = Callable[[Tensor], Tensor]


def reverse_kl(s: Tensor) -> Tensor:
    """DPO's own: s."""
    return s


def forward_kl(s: Tensor) -> Tensor:
    """1 - e^-s."""
    return 1 - (-s).clamp(max=MOST_EXPONENT).exp()


def js(s: Tensor) -> Tensor:
    """Jensen-Shannon: log 2 + log sigmoid(s)."""
    return math.log(2) + logsigmoid(s)


def alpha(s: Tensor, *, order: float) -> Tensor:
    """(e^((a-1) s) - 1) / (a - 1) for order a, not 1; 0 is forward KL, towards 1 reverse KL."""
    return (((order - 1) * s).clamp(max=MOST_EXPONENT).exp() - 1) / (order - 1)


def divergence(name: str, order: float) -> Divergence:
    """By name: `reverse_kl`, `forward_kl`, `js`, or `alpha` of an order."""
    if name == "alpha":
        return partial(alpha, order=order)
    return {"reverse_kl": reverse_kl, "forward_kl": forward_kl, "js": js}[name]

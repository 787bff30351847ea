"""Surrogate loss of the policy per token."""

from __future__ import annotations

import torch
from torch import Tensor


def policy_loss(logp: Tensor, old_logp: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """Clipped surrogate loss of PPO (Schulman et al. 2017, arXiv:1707.06347, eq. 7), negated.

    Args:
        logp: [S], nats, log p of the sampled tokens under the policy.
        old_logp: [S], nats, the same under the policy that sampled them.
        advantage: [S].
        clip_range: ε > 0, clip range of the policy ratio around 1.

    Returns:
        [S], not reduced.
    """
    ratio = (logp - old_logp).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantage * ratio, -advantage * clipped)

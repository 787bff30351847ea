"""Proximal policy optimization: losses of tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def policy_loss(logp: Tensor, old_logp: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """The clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, eq. 7), as a loss.

    Args:
        logp: [S], nats, of the sampled tokens under the policy.
        old_logp: [S], under the policy that sampled them.
        advantage: [S].
        clip_range: > 0; how far from 1 the ratio of the two pays.

    Returns:
        [S], not reduced.
    """
    ratio = (logp - old_logp).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantage * ratio, -advantage * clipped)


def value_loss(value: Tensor, old_value: Tensor, target: Tensor, clip_range: float) -> Tensor:
    """Half the squared error, the worse of the value and the value held near the old one.

    As in OpenAI's implementation of PPO (Huang et al. 2022, "The 37 implementation details of PPO",
    detail 9).

    Args:
        value: [S], of the value model.
        old_value: [S], when the response was sampled.
        target: [S], returns.
        clip_range: >= 0.

    Returns:
        [S], not reduced.
    """
    held = torch.clamp(value, old_value - clip_range, old_value + clip_range)
    return 0.5 * torch.maximum((value - target) ** 2, (held - target) ** 2)


def approximate_kl(logp: Tensor, old_logp: Tensor) -> Tensor:
    """[S], nats: half the squared log-ratio, how far an update has gone (Schulman 2020)."""
    return 0.5 * (logp - old_logp) ** 2

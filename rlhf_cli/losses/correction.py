"""Importance weights against the difference between the sampler and the policy in training.

A server samples by other kernels, another precision or older weights than those that training
computes log-probs with: the data are off-policy by more than the updates made them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

MAX_LOGRATIO = 20.0
"""Log-ratios are cut to this, nats, so that a weight is finite; no cap is as large."""


def importance_weights(
    logp: Tensor,
    sampler_logp: Tensor,
    mask: Tensor,
    *,
    per: Literal["token", "sequence"],
    cap: float,
    drop: bool = False,
) -> Tensor:
    """Truncated importance weights p / q of sampled tokens, policy over sampler.

    Ionides 2008, "Truncated importance sampling", eq. 2; for language models Yao et al. 2025, "Your
    efficient RL framework secretly brings you off-policy RL training" (tokens), and Liu et al.
    2025, "When speed kills stability" (sequences, and dropping instead of truncating).

    Args:
        logp: [B, T], nats, log p of the sampled tokens under the policy before its update.
        sampler_logp: [B, T], nats, log q of the same under the distribution they were sampled from.
        mask: [B, T] bool, True for sampled tokens.
        per: `token`, a ratio for each; `sequence`, the product of a response's ratios for all of
            its tokens.
        cap: largest weight, > 1.
        drop: a ratio above `cap` gives a weight of 0 instead of `cap`.

    Returns:
        [B, T]: weights, to be multiplied with the policy loss; 1 where the mask is False.
    """
    logratio = torch.where(mask, logp - sampler_logp, 0.0)
    if per == "sequence":
        logratio = logratio.sum(-1, keepdim=True)
    ratio = logratio.clamp(max=MAX_LOGRATIO).exp()
    kept = torch.where(ratio <= cap, ratio, 0.0) if drop else ratio.clamp(max=cap)
    return torch.where(mask, kept, 1.0)

"""Advantages of sampled responses, from rewards per token or scores per group, and whitening."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

    The value after a response's last token is 0, whether the response ended or was cut off.

    Args:
        rewards: [B, T], reward of each response token; zero after the response.
        values: [B, T], value model's expected return from each token on.
        mask: [B, T] bool, True for response tokens, which start at column 0.
        gamma: discount factor γ, 0 to 1.
        gae_lambda: λ, 0 to 1; 0 uses one-step TD errors, 1 full returns.

    Returns:
        Advantages and returns (advantages + values), [B, T]; zero where the mask is False.
    """
    kept = mask.to(values.dtype)
    values = values * kept
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    td_errors = (rewards + gamma * next_values - values) * kept
    advantages = torch.zeros_like(values)
    advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        advantage = td_errors[:, t] + gamma * gae_lambda * advantage
        advantages[:, t] = advantage
    return advantages * kept, (advantages + values) * kept


def whiten(
    values: Tensor, mask: Tensor, *, all_values: Tensor | None = None, keep_mean: bool = False
) -> Tensor:
    """Whiten values over the mask to mean 0 and variance 1; zero elsewhere.

    Args:
        values: [...].
        mask: [...] bool.
        all_values: [N], values that give mean and variance, if more than those under the mask:
            those of all ranks.
        keep_mean: scale only, and keep the mean.
    """
    all_values = values[mask] if all_values is None else all_values
    if len(all_values) < 2:
        return values * mask
    mean = all_values.mean()
    # 1e-8 as in TRL: equal values become 0, not infinite
    white = (values - mean) * torch.rsqrt(all_values.var() + 1e-8)
    return torch.where(mask, white + mean if keep_mean else white, 0.0)


def grpo_advantages(scores: Tensor) -> Tensor:
    """Group-relative advantages (Shao et al. 2024, arXiv:2402.03300, section 4.1.2).

    Args:
        scores: [prompts, samples], at least two samples per prompt.

    Returns:
        [prompts, samples]: (score - mean) / (standard deviation + 1e-4) within each group.
    """
    scores = _relative_to_first(scores)
    centered = scores - scores.mean(1, keepdim=True)
    return centered / (scores.std(1, keepdim=True) + 1e-4)


def rloo_advantages(scores: Tensor) -> Tensor:
    """Leave-one-out advantages: score - mean of the group's other scores.

    (Ahmadian et al. 2024, arXiv:2402.14740, eq. 8.)

    Args:
        scores: [prompts, samples], at least two samples per prompt.

    Returns:
        [prompts, samples].
    """
    scores = _relative_to_first(scores)
    others = (scores.sum(1, keepdim=True) - scores) / (scores.shape[1] - 1)
    return scores - others


def _relative_to_first(scores: Tensor) -> Tensor:
    """Scores minus the first of their group, so that equal scores give exact zeros."""
    return scores - scores[:, :1]

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


def grpo_advantages(
    scores: Tensor, scale: str = "std", *, all_scores: Tensor | None = None
) -> Tensor:
    """Group-relative advantages (Shao et al. 2024, arXiv:2402.03300, section 4.1.2).

    Args:
        scores: [prompts, samples], at least two samples per prompt.
        scale: what the difference from the group's mean is divided by: `std`, the standard
            deviation of its group + 1e-4; `none`, nothing (Dr. GRPO, Liu et al. 2025,
            arXiv:2503.20783); `batch`, the standard deviation of all scores + 1e-4
            (Liu et al. 2025, arXiv:2508.08221).
        all_scores: [N], scores of the batch, for `batch`; if not given, those of `scores`.

    Returns:
        [prompts, samples].
    """
    relative = _relative_to_first(scores)
    centered = relative - relative.mean(1, keepdim=True)
    if scale == "none":
        return centered
    if scale == "std":
        return centered / (relative.std(1, keepdim=True) + 1e-4)
    return centered / ((scores.flatten() if all_scores is None else all_scores).std() + 1e-4)


def gdpo_advantages(scores: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the group-relative advantages of several rewards, before whitening.

    GDPO (Liu et al. 2026, arXiv:2601.05242): each reward is normalized within its group
    by itself, so that different combinations of rewards keep different advantages; the sum is then
    whitened over the batch.

    Args:
        scores: [prompts, samples, rewards].
        weights: [rewards].

    Returns:
        [prompts, samples].
    """
    each = [grpo_advantages(scores[..., k]) for k in range(scores.shape[-1])]
    return (torch.stack(each, -1) * weights).sum(-1)


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


def overlong_penalty(lengths: Tensor, max_new_tokens: int, buffer: int) -> Tensor:
    """Penalty of responses near the length limit (DAPO, arXiv:2503.14476, eq. 13).

    Args:
        lengths: [B], tokens of each response, at most `max_new_tokens`.
        max_new_tokens: L_max, the limit.
        buffer: L_cache > 0, tokens before the limit over which the penalty grows.

    Returns:
        [B], from 0 at `max_new_tokens - buffer` tokens to -1 at `max_new_tokens`.
    """
    return ((max_new_tokens - buffer - lengths.float()) / buffer).clamp(-1, 0)

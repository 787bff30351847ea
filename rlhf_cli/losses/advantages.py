"""From rewards to advantages: by a value model, or by other responses to the same prompt."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

    The value after a response's last token is 0, whether it ended or was cut off.

    Args:
        rewards: [B, T], of each response token; zero behind the response.
        values: [B, T], what the value model expects from this token on.
        mask: [B, T] bool, True for response tokens, which stand at the row's beginning.
        gamma: 0 to 1, worth of the next token's reward.
        gae_lambda: 0 to 1; 0 trusts the values, 1 the rewards.

    Returns:
        Advantages and returns (advantages + values), [B, T]; zero where the mask is False.
    """
    kept = mask.to(values.dtype)
    values = values * kept
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    errors = (rewards + gamma * following - values) * kept
    advantages = torch.zeros_like(values)
    carried = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        carried = errors[:, t] + gamma * gae_lambda * carried
        advantages[:, t] = carried
    return advantages * kept, (advantages + values) * kept


def whiten(
    values: Tensor, mask: Tensor, *, seen: Tensor | None = None, keep_mean: bool = False
) -> Tensor:
    """Values with variance 1 and mean 0, or their own mean, over the mask; zero elsewhere.

    Args:
        values: [B, T].
        mask: [B, T] bool.
        seen: [N], the values that mean and variance are of, where there are more than those of the
            mask: those of all ranks.
        keep_mean: leave the mean as it was.
    """
    seen = values[mask] if seen is None else seen
    if len(seen) < 2:
        return values * mask
    mean = seen.mean()
    # 1e-8 as in TRL: equal values become 0, not infinite
    white = (values - mean) * torch.rsqrt(seen.var() + 1e-8)
    return torch.where(mask, white + mean if keep_mean else white, 0.0)


def grpo_advantages(scores: Tensor) -> Tensor:
    """Group relative advantages (Shao et al. 2024, arXiv:2402.03300, section 4.1.2).

    Args:
        scores: [prompts, samples], two samples at least.

    Returns:
        Of the same shape: (score - mean) / (deviation + 1e-4) in each group.
    """
    scores = _from_first(scores)
    centred = scores - scores.mean(1, keepdim=True)
    return centred / (scores.std(1, keepdim=True) + 1e-4)


def rloo_advantages(scores: Tensor) -> Tensor:
    """Leave one out (Ahmadian et al. 2024, arXiv:2402.14740, eq. 8): score - mean of the others.

    Args:
        scores: [prompts, samples], two samples at least.
    """
    scores = _from_first(scores)
    others = (scores.sum(1, keepdim=True) - scores) / (scores.shape[1] - 1)
    return scores - others


def _from_first(scores: Tensor) -> Tensor:
    """How far each is from the first of its group: of equal scores nothing is left to round."""
    return scores - scores[:, :1]

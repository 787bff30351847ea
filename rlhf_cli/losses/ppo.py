"""PPO: KL estimates and coefficient, advantages, whitening, policy and value loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def kl_estimate(logp: Tensor, ref_logp: Tensor, kind: str) -> Tensor:
    """Estimate of KL(policy || reference) per token (Schulman 2020, "Approximating KL divergence").

    Args:
        logp: [...], nats, log p of sampled tokens under the policy.
        ref_logp: [...], nats, the same under the reference.
        kind: `k1` = log-ratio, unbiased; `k2` = half its square; `k3` = e^-k1 - 1 + k1, unbiased
            and never negative.

    Returns:
        [...], nats, not reduced.
    """
    logratio = logp - ref_logp
    if kind == "k1":
        return logratio
    if kind == "k2":
        return 0.5 * logratio**2
    return (-logratio).exp() - 1 + logratio


@dataclass
class KLController:
    """KL penalty coefficient β: fixed or adaptive (Ziegler et al. 2019, arXiv:1909.08593).

    Attributes:
        value: current coefficient, 1/nats.
        target: target KL per response, nats; 0 keeps the coefficient fixed.
        horizon: responses over which the coefficient adapts.
    """

    value: float
    target: float = 0.0
    horizon: int = 10_000

    def update(self, kl: float, responses: int) -> None:
        """Adapt to the mean KL of a rollout, nats (arXiv:1909.08593, section 2.2)."""
        if self.target:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.value *= 1 + error * responses / self.horizon


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


def value_loss(value: Tensor, old_value: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """Clipped value loss: half the larger squared error of the value and the clipped value.

    As in OpenAI's implementation of PPO (Huang et al. 2022, "The 37 implementation details of PPO",
    detail 9).

    Args:
        value: [S], of the value model.
        old_value: [S], of the value model when the response was sampled.
        returns: [S], regression target.
        clip_range: >= 0, largest change of the clipped value from `old_value`.

    Returns:
        [S], not reduced.
    """
    clipped = torch.clamp(value, old_value - clip_range, old_value + clip_range)
    return 0.5 * torch.maximum((value - returns) ** 2, (clipped - returns) ** 2)


def approximate_kl(logp: Tensor, old_logp: Tensor) -> Tensor:
    """Approximate KL of an update, [S], nats: half the squared log-ratio (Schulman 2020)."""
    return 0.5 * (logp - old_logp) ** 2

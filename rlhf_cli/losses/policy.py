"""Losses of the policy per token: ratio, clipping, and weights that reduce them to one number."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RatioClip:
    """Limits of the policy ratio.

    Attributes:
        low: ε_low > 0; a token with a negative advantage has no gradient below 1 - ε_low.
        high: ε_high > 0; one with a positive advantage has none above 1 + ε_high. PPO has
            ε_high = ε_low, DAPO a larger one (Yu et al. 2025, arXiv:2503.14476, eq. 10).
        dual: c > 1, limit of the ratio of a token with a negative advantage; 0 for none.
    """

    low: float
    high: float
    dual: float = 0.0

    def exceeded(self, ratio: Tensor) -> Tensor:
        """Where the ratio is outside 1 - ε_low to 1 + ε_high: [S] bool."""
        return (ratio < 1 - self.low) | (ratio > 1 + self.high)


def importance_log_ratio(log_ratio: Tensor, row: Tensor, rows: int, level: str) -> Tensor:
    """Log of the importance ratio of each token.

    Args:
        log_ratio: [S], nats, log p under the policy minus that under the policy that sampled.
        row: [S] int64, the response of each token.
        rows: number of responses.
        level: `token` leaves each token its own. `sequence` gives all tokens of a response the
            ratio of the response, normalized by its length: the mean of their log-ratios (GSPO,
            Zheng et al. 2025, arXiv:2507.18071, eq. 7). `sequence_token` has the same value, and
            passes the gradient to each token alone (GSPO-token, section 4.3).

    Returns:
        [S], nats.
    """
    if level == "token":
        return log_ratio
    sums = torch.zeros(rows, dtype=log_ratio.dtype, device=log_ratio.device)
    sums = sums.index_add(0, row, log_ratio)
    counts = torch.zeros_like(sums).index_add(0, row, torch.ones_like(log_ratio))
    of_row = (sums / counts.clamp(min=1))[row]
    if level == "sequence":
        return of_row
    return of_row.detach() + log_ratio - log_ratio.detach()


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, clip: RatioClip) -> Tensor:
    """Clipped surrogate loss of PPO (Schulman et al. 2017, arXiv:1707.06347, eq. 7), negated.

    With `clip.dual`, the loss of a token with a negative advantage is at most c times its size (Ye
    et al. 2020, arXiv:1912.09729, eq. 5).

    Args:
        log_ratio: [S], nats, log of the importance ratio.
        advantage: [S].
        clip: limits of the ratio.

    Returns:
        [S], not reduced.
    """
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip.low, 1 + clip.high)
    losses = torch.maximum(-advantage * ratio, -advantage * clipped)
    if not clip.dual:
        return losses
    return torch.where(advantage < 0, torch.minimum(losses, -advantage * clip.dual), losses)


def cispo_loss(logp: Tensor, log_ratio: Tensor, advantage: Tensor, clip: RatioClip) -> Tensor:
    """CISPO: log p weighted by the clipped ratio, which has no gradient, and the advantage.

    (MiniMax 2025, arXiv:2506.13585, eq. 4 and 5.) Every token keeps its gradient. The ratio has no
    lower limit, as in section 3.1 there, where ε_low is set so large that it has no effect.

    Args:
        logp: [S], nats, log p of the sampled tokens under the policy.
        log_ratio: [S], nats, log of the importance ratio.
        advantage: [S].
        clip: `high` limits the ratio to 1 + ε_high.

    Returns:
        [S], not reduced.
    """
    ratio = log_ratio.detach().exp().clamp(max=1 + clip.high)
    return -ratio * advantage * logp


def aggregation_weights(lengths: Tensor, kind: str, max_new_tokens: int) -> Tensor:
    """Weight of each token's loss, by response; the sum is divided by tokens or by responses.

    Args:
        lengths: [B], tokens of each response.
        kind: `token`, the mean over all tokens (DAPO, arXiv:2503.14476, eq. 8): weight 1, divided
            by tokens. `sequence`, the mean over responses of the mean over their tokens (GRPO,
            arXiv:2402.03300, eq. 3): 1 / length, divided by responses. `constant`, the sum over
            responses · max_new_tokens (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783):
            1 / max_new_tokens, divided by responses.
        max_new_tokens: most tokens of a response.

    Returns:
        [B], fp32.
    """
    lengths = lengths.float()
    if kind == "token":
        return torch.ones_like(lengths)
    if kind == "sequence":
        return 1 / lengths.clamp(min=1)
    return torch.full_like(lengths, 1 / max_new_tokens)

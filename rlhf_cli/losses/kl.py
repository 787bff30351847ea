"""KL divergence: estimates per token, and the adaptive penalty coefficient."""

from __future__ import annotations

from dataclasses import dataclass

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


def approximate_kl(logp: Tensor, old_logp: Tensor) -> Tensor:
    """Approximate KL of an update, [S], nats: half the squared log-ratio (Schulman 2020)."""
    return 0.5 * (logp - old_logp) ** 2


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

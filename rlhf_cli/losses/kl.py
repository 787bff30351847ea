"""Estimates of KL(policy || reference) from samples of the policy, and its coefficient."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


def kl_estimate(logp: Tensor, ref_logp: Tensor, kind: str) -> Tensor:
    """KL of each token, nats (Schulman 2020, "Approximating KL divergence").

    Args:
        logp: [...], nats, of sampled tokens under the policy.
        ref_logp: the same under the reference.
        kind: `k1` = log-ratio, unbiased; `k2` = half its square; `k3` = e^-k1 - 1 + k1, unbiased
            and never negative.

    Returns:
        Of the same shape, not reduced.
    """
    ratio = logp - ref_logp
    if kind == "k1":
        return ratio
    if kind == "k2":
        return 0.5 * ratio**2
    return (-ratio).exp() - 1 + ratio


@dataclass
class KLController:
    """The KL coefficient: fixed, or drawn to a target (Ziegler et al. 2019, arXiv:1909.08593).

    Attributes:
        value: the coefficient now, 1/nats.
        target: KL of a whole response to hold, nats; 0 keeps the value as it is.
        horizon: responses over which it reacts.
    """

    value: float
    target: float = 0.0
    horizon: int = 10_000

    def update(self, kl: float, responses: int) -> None:
        """Take in the mean KL of a rollout (arXiv:1909.08593, section 2.2)."""
        if self.target:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.value *= 1 + error * responses / self.horizon

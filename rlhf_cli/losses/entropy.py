"""Coefficient of the entropy bonus."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class EntropyController:
    """Coefficient of the entropy bonus: fixed, or adapted to a target entropy.

    Adapted as in Skywork-OR1 (He et al. 2025, arXiv:2505.22312): after each rollout
    it rises by `step` where the entropy is at most the target, else it falls by `step`, here not
    below 0; it acts only in a rollout whose entropy is at most the target.

    Attributes:
        value: current coefficient c, no unit.
        target: entropy to hold, nats per token; 0 keeps the coefficient fixed.
        step: Δ > 0, change of the coefficient per rollout.
    """

    value: float
    target: float = 0.0
    step: float = 0.005

    def observe(self, entropy: float) -> float:
        """Return the coefficient of a rollout, and adapt that of the next one.

        Args:
            entropy: of the policy that wrote the rollout, nats per token.
        """
        if not self.target:
            return self.value
        low = entropy <= self.target
        acting = self.value if low else 0.0
        self.value = max(0.0, self.value + (self.step if low else -self.step))
        return acting

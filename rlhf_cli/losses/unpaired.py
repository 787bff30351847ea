"""Losses of single labelled responses: BCO and KTO."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import logsigmoid

MIN_DENSITY_RATIO, MAX_DENSITY_RATIO = 0.5, 10.0
"""Bounds of the density ratio, so that no single prompt outweighs the rest."""


def bco_loss(reward: Tensor, label: Tensor, delta: float) -> Tensor:
    """BCO: cross-entropy of the label with sigmoid(reward - delta).

    Binary classifier optimization (Jung et al. 2024, arXiv:2404.04656, eq. 6).

    Args:
        reward: [B], nats, beta * (log p - log p_ref) of each response.
        label: [B], 1 desirable, 0 undesirable.
        delta: reward shift, nats; a constant.

    Returns:
        [B], nats, not reduced. ln 2 where policy and reference agree and delta is 0.
    """
    shifted = reward - delta
    return -logsigmoid(shifted.where(label > 0.5, -shifted))


def density_ratio(probability: Tensor) -> Tensor:
    """Density ratio of desirable to undesirable prompts: p / (1 - p), clamped to 0.5 to 10.

    As weight of undesirable rows it matches their prompt distribution to that of the desirable
    rows (arXiv:2404.04656, section 4.2).

    Args:
        probability: [B], P(the prompt belongs to a desirable row).

    Returns:
        [B], no unit.
    """
    ratio: Tensor = (probability / (1 - probability)).clamp(MIN_DENSITY_RATIO, MAX_DENSITY_RATIO)
    return ratio


@dataclass
class RewardShift:
    """BCO's reward shift δ, estimated from the rewards of all steps so far.

    `running` is the mean of all rewards, `ema` their exponential moving average over steps, and
    `balanced` the midpoint of the two class means, which does not depend on class sizes.

    Attributes:
        kind: `running`, `ema` or `balanced`.
        decay: EMA decay per step.
        desirable: sum and count of the rewards of desirable rows.
        undesirable: sum and count of the rewards of undesirable rows.
        average: current EMA; none before the first step.
    """

    kind: str
    decay: float = 0.9
    desirable: tuple[float, float] = (0.0, 0.0)
    undesirable: tuple[float, float] = (0.0, 0.0)
    average: float | None = None

    @property
    def value(self) -> float:
        """δ, nats; 0 before the first step."""
        if self.kind == "ema":
            return self.average or 0.0
        classes = [sums for sums in (self.desirable, self.undesirable) if sums[1]]
        if not classes:
            return 0.0
        if self.kind == "balanced":
            return sum(total / count for total, count in classes) / len(classes)
        return sum(total for total, _ in classes) / sum(count for _, count in classes)

    def update(self, reward: Tensor, label: Tensor) -> None:
        """Add the rewards [B] and labels [B] of a whole optimizer step, before its loss."""
        reward, desirable = reward.detach().double(), label > 0.5
        if self.kind == "ema":
            mean = float(reward.mean())
            before = mean if self.average is None else self.average
            self.average = self.decay * before + (1 - self.decay) * mean
        self.desirable = _add(self.desirable, reward[desirable])
        self.undesirable = _add(self.undesirable, reward[~desirable])

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, as JSON values."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.desirable, self.undesirable = tuple(state["desirable"]), tuple(state["undesirable"])
        self.average = state["average"]


def _add(sums: tuple[float, float], rewards: Tensor) -> tuple[float, float]:
    return sums[0] + float(rewards.sum()), sums[1] + len(rewards)


def reference_point(mismatched: Tensor) -> Tensor:
    """KTO's reference point z0, an estimate of KL(policy || reference).

    (Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1.)

    Args:
        mismatched: [B], nats, log p - log p_ref of responses paired with other prompts.

    Returns:
        Scalar, nats, at least 0, without gradient.
    """
    return mismatched.detach().mean().clamp(min=0)


def kto_loss(s: Tensor, label: Tensor, z: Tensor, *, beta: float) -> Tensor:
    """KTO: 1 - value of each response, before class weights (arXiv:2402.01306, eq. 8).

    Args:
        s: [B], nats, log p - log p_ref of each response.
        label: [B], 1 desirable, 0 undesirable.
        z: scalar, nats, reference point.
        beta: > 0, 1/nats.

    Returns:
        [B], 0 to 1, not reduced: 1 - sigmoid(beta (s - z)) for desirable responses,
        1 - sigmoid(beta (z - s)) for undesirable ones. 0.5 where policy and reference agree.
    """
    logits = beta * (s - z)
    return 1 - logits.where(label > 0.5, -logits).sigmoid()

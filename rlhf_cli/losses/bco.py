"""Binary classifier optimization (Jung et al. 2024, arXiv:2404.04656)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import logsigmoid

LEAST_RATIO, MOST_RATIO = 0.5, 10.0
"""Bounds of a density ratio: one prompt is not to outweigh the rest."""


def bco_loss(reward: Tensor, label: Tensor, delta: float) -> Tensor:
    """Cross-entropy of "desirable" with sigmoid(reward - delta) (arXiv:2404.04656, eq. 6).

    Args:
        reward: [B], nats, beta * (log p - log p_ref) of each response.
        label: [B], 1 desirable, 0 undesirable.
        delta: reward shift, nats; a constant.

    Returns:
        [B], nats, not reduced. ln 2 where policy and reference agree and delta is 0.
    """
    apart = reward - delta
    return -logsigmoid(apart.where(label > 0.5, -apart))


def density_ratio(probability: Tensor) -> Tensor:
    """P / (1 - p) between 0.5 and 10, [B]: how much likelier a prompt is among desirable rows.

    With it as weight, undesirable rows count as if their prompts were the desirable ones'
    (arXiv:2404.04656, section 4.2).
    """
    ratio: Tensor = (probability / (1 - probability)).clamp(LEAST_RATIO, MOST_RATIO)
    return ratio


@dataclass
class Delta:
    """The reward shift, from the rewards of the steps so far.

    `running` is the mean of all rewards seen, `ema` forgets old ones, `balanced` is the middle
    between the means of the two classes, so that their numbers do not matter.

    Attributes:
        kind: `running`, `ema` or `balanced`.
        decay: of `ema`: the share that stays of the value before.
        desirable: sum and count of the rewards of desirable rows.
        undesirable: the same of the others.
        average: of `ema`.
    """

    kind: str
    decay: float = 0.9
    desirable: tuple[float, float] = (0.0, 0.0)
    undesirable: tuple[float, float] = (0.0, 0.0)
    average: float | None = None

    @property
    def value(self) -> float:
        """Nats; 0 before any reward was seen."""
        if self.kind == "ema":
            return self.average or 0.0
        sides = [side for side in (self.desirable, self.undesirable) if side[1]]
        if not sides:
            return 0.0
        if self.kind == "balanced":
            return sum(total / count for total, count in sides) / len(sides)
        return sum(total for total, _ in sides) / sum(count for _, count in sides)

    def update(self, reward: Tensor, label: Tensor) -> None:
        """Take in the rewards [B] of a whole step and their labels [B], before its loss."""
        reward, desirable = reward.detach().double(), label > 0.5
        if self.kind == "ema":
            mean = float(reward.mean())
            before = mean if self.average is None else self.average
            self.average = self.decay * before + (1 - self.decay) * mean
        self.desirable = _added(self.desirable, reward[desirable])
        self.undesirable = _added(self.undesirable, reward[~desirable])

    def state_dict(self) -> dict[str, Any]:
        """The numbers, for a checkpoint."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.desirable, self.undesirable = tuple(state["desirable"]), tuple(state["undesirable"])
        self.average = state["average"]


def _added(side: tuple[float, float], rewards: Tensor) -> tuple[float, float]:
    return side[0] + float(rewards.sum()), side[1] + len(rewards)

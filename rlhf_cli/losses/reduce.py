"""How a loss leaves its function: sums with their units, divided later by global counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

Metrics = dict[str, tuple[Tensor, Tensor | float]]
"""Name -> (sum, count), without gradient; merged by adding both. A count that only the device knows
is a tensor, so that nothing waits for it before it is logged."""


@dataclass(frozen=True)
class Term:
    """A part of the loss: its sum over this micro-batch, and what it is a mean of.

    Attributes:
        total: scalar, nats, with gradient.
        unit: key of `Rows.count` (`tokens`, `rows`); the step's global count divides `total`.
        weight: factor of this part in the loss.
    """

    total: Tensor
    unit: str
    weight: float = 1.0


@dataclass(frozen=True)
class LossOutput:
    """What a loss gives for one micro-batch.

    Attributes:
        terms: parts of the loss by name.
        metrics: of the micro-batch's rows.
    """

    terms: Mapping[str, Term]
    metrics: Mapping[str, tuple[Tensor, Tensor | float]] = field(default_factory=dict)


def scaled_loss(output: LossOutput, counts: Mapping[str, float]) -> Tensor:
    """The micro-batch's share of the step's loss.

    Args:
        output: sums over the micro-batch.
        counts: of each unit, over all micro-batches (and ranks) of the step; > 0.

    Returns:
        Scalar: Σ weight · total / count. The shares of a step add up to its loss.
    """
    shares = [term.weight * term.total / counts[term.unit] for term in output.terms.values()]
    total = shares[0]
    for share in shares[1:]:
        total = total + share
    return total

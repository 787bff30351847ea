"""Reduction of losses and metrics: sums per micro-batch, divided by the step's global counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

Metrics = dict[str, tuple[Tensor, Tensor | float]]
"""Metric name -> (sum, count), without gradient; merged by adding sums and counts. A count that is
known only on the device is a tensor, so that the host does not wait for it before logging."""


def mean_metric(values: Tensor) -> tuple[Tensor, float]:
    """Sum and count of values [N]: a metric that is their mean."""
    return values.detach().sum(), float(len(values))


@dataclass(frozen=True)
class LossTerm:
    """One term of the loss, summed over a micro-batch.

    Attributes:
        total: scalar, nats, with gradient.
        unit: key of `TokenBatch.count` (`tokens`, `rows`) whose global count divides `total`.
        weight: coefficient of this term in the loss.
    """

    total: Tensor
    unit: str
    weight: float = 1.0


@dataclass(frozen=True)
class LossOutput:
    """Loss terms and metrics of one micro-batch.

    Attributes:
        terms: loss term by name.
        metrics: sums and counts over the micro-batch.
    """

    terms: Mapping[str, LossTerm]
    metrics: Mapping[str, tuple[Tensor, Tensor | float]] = field(default_factory=dict)


def scaled_loss(output: LossOutput, counts: Mapping[str, float]) -> Tensor:
    """Contribution of a micro-batch to the loss of its optimizer step.

    Args:
        output: sums over the micro-batch.
        counts: count of each unit over all micro-batches and ranks of the step.

    Returns:
        Scalar: Σ weight · total / count. The contributions of a step add up to its loss.
    """
    # a unit that the step has none of has a sum of 0
    parts = [term.weight * term.total / (counts[term.unit] or 1) for term in output.terms.values()]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total

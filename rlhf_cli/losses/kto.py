"""Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306)."""

from __future__ import annotations

from torch import Tensor


def reference_point(mismatched: Tensor) -> Tensor:
    """z0, nats, a constant (arXiv:2402.01306, section 4.1): how far the policy went in general.

    Args:
        mismatched: [B], nats, log p - log p_ref of responses to other prompts than their own.

    Returns:
        Scalar, not below 0, without gradient: an estimate of KL(policy || reference).
    """
    return mismatched.detach().mean().clamp(min=0)


def kto_loss(s: Tensor, label: Tensor, z: Tensor, *, beta: float) -> Tensor:
    """How much value a response falls short of (arXiv:2402.01306, eq. 8), before class weights.

    Args:
        s: [B], nats, log p - log p_ref of each response.
        label: [B], 1 desirable, 0 undesirable.
        z: scalar, nats, the reference point.
        beta: > 0, 1/nats.

    Returns:
        [B], 0 to 1, not reduced: 1 - sigmoid(beta (s - z)), the other way round for undesirable
        ones. A half wherever policy and reference agree.
    """
    apart = beta * (s - z)
    return 1 - apart.where(label > 0.5, -apart).sigmoid()

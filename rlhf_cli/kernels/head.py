"""What maps hidden states to logits, and what comes back per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_cli.kernels.packed import PackedWeight


@dataclass(frozen=True)
class Head:
    """The output layer of a language model: logits = softcap(scale · (hidden Wᵀ + bias)).

    Attributes:
        weight: [V, d], often the input embedding itself; or packed, and then frozen.
        bias: [V] or none.
        scale: factor on the logits (Cohere's `logit_scale`, one over Granite's `logits_scaling`).
        softcap: c of c · tanh(logits / c) (Gemma 2), or none.
    """

    weight: Tensor | PackedWeight
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


@dataclass(frozen=True)
class Routed:
    """Sums over the tokens of each row, in all layers that have experts.

    Attributes:
        chosen: [R, E] fp32, how often each expert was among a token's top k; no gradient.
        share: [R, E] fp32, the routers' probabilities of each expert.
        tokens: [R] fp32, tokens times layers; no gradient.
    """

    chosen: Tensor
    share: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class TokenLogprobs:
    """Per scored token, all [S] in fp32 save `top1`; what was not asked for is none.

    Attributes:
        logp: log-probability of the target, nats.
        entropy: entropy of the distribution, nats.
        lse: log-sum-exp of the logits.
        sum_sq: Σ p², the chance that two draws agree; no gradient.
        top1: bool, the target is the likeliest token; no gradient.
        value: what a value model beside the policy expects from the target on.
        router: how the rows were routed to experts.
    """

    logp: Tensor
    entropy: Tensor | None = None
    lse: Tensor | None = None
    sum_sq: Tensor | None = None
    top1: Tensor | None = None
    value: Tensor | None = None
    router: Routed | None = None


def given_gradients(
    upstream: Sequence[Tensor | None], lse: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The gradients of log-prob, entropy and log-sum-exp that a backward pass is given.

    Args:
        upstream: of the three, none where the loss does not use it.
        lse: [S] fp32, which tells shape and type.

    Returns:
        The same with zeros for none; save for the entropy, whose gradient costs a pass of its own.
    """
    for_logp, for_entropy, for_lse = upstream
    zeros = torch.zeros_like(lse)
    return (
        zeros if for_logp is None else for_logp,
        for_entropy,
        zeros if for_lse is None else for_lse,
    )

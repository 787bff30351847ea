"""The one log-prob primitive: hidden states at scored positions -> log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from rlhf_cli.kernels.chunked import linear_logprobs
from rlhf_cli.kernels.head import Head, TokenLogprobs
from rlhf_cli.kernels.registry import LinearLogprobs

WANTS = frozenset({"logp", "entropy", "lse", "sum_sq", "top1"})


def token_logprobs(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    want: Iterable[str] = ("logp",),
    implementation: LinearLogprobs = linear_logprobs,
) -> TokenLogprobs:
    """Log-probability of each target token under softmax(head(hidden) / temperature).

    Args:
        hidden: [S, d], the hidden state at each scored position.
        head: the output layer; gradients reach its weight and bias where they are trained.
        targets: [S] int64, the token that each position predicts.
        temperature: > 0, no unit; divides the logits after scale and soft cap.
        want: any of `logp entropy lse sum_sq top1`; each costs a pass over the logits.
        implementation: one of `kernels.registry.LINEAR_LOGPROBS`.

    Returns:
        fp32 values in nats, [S] each. With S = 0 they are empty and still differentiable.

    Raises:
        ValueError: an unknown name in `want`.
    """
    unknown = set(want) - WANTS
    if unknown:
        raise ValueError(f"want: got {sorted(unknown)}; need some of {sorted(WANTS)}")
    return implementation(hidden, head, targets, temperature=temperature, want=frozenset(want))


def sum_by_row(values: Tensor, row_of_value: Tensor, rows: int) -> Tensor:
    """[rows]: the values of each row added up, as log p(response) from its tokens' [S]."""
    return torch.zeros(rows, dtype=values.dtype, device=values.device).index_add(
        0, row_of_value, values
    )

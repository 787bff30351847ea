"""Log-prob primitive of all stages: hidden states at scored positions -> log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from rlhf_cli.kernels.chunked import linear_logprobs
from rlhf_cli.kernels.lm_head import LMHead, TokenLogprobs
from rlhf_cli.kernels.registry import LinearLogprobs

WANTS = frozenset({"logp", "entropy", "lse", "sum_sq", "top1"})


def token_logprobs(
    hidden: Tensor,
    head: LMHead,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    want: Iterable[str] = ("logp",),
    implementation: LinearLogprobs = linear_logprobs,
) -> TokenLogprobs:
    """Log-probability of each target token under softmax(head(hidden) / temperature).

    Args:
        hidden: [S, d], hidden state at each scored position.
        head: output layer; its weight and bias get gradients if they are trained.
        targets: [S] int64, token to predict at each position.
        temperature: > 0, no unit; divides the logits, after scale and soft cap.
        want: any of `logp entropy lse sum_sq top1`; each costs a pass over the logits.
        implementation: one of `kernels.registry.LINEAR_LOGPROBS`.

    Returns:
        fp32 values in nats, [S] each. S = 0 gives empty, still differentiable values.

    Raises:
        ValueError: an unknown name in `want`.
    """
    unknown = set(want) - WANTS
    if unknown:
        raise ValueError(f"want: got {sorted(unknown)}; need some of {sorted(WANTS)}")
    return implementation(hidden, head, targets, temperature=temperature, want=frozenset(want))


def sum_by_row(values: Tensor, row_of_value: Tensor, rows: int) -> Tensor:
    """Sum values [S] by row: [rows], as log p(response) from its token log-probs."""
    return torch.zeros(rows, dtype=values.dtype, device=values.device).index_add(
        0, row_of_value, values
    )

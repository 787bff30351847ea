"""Numbers of whole rows from the log-probs of their tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.kernels.lm_head import TokenLogprobs
from rlhf_cli.logprobs import sum_by_row
from rlhf_cli.losses.dpo import ld_weight


def row_sums(values: Tensor, rows: TokenBatch) -> Tensor:
    """[R]: the sum over each row's scored tokens of values [S]."""
    return sum_by_row(values, rows.row_of_scored, len(rows.lengths))


def split_pairs(values: Tensor) -> tuple[Tensor, Tensor]:
    """[B] and [B], of values [2 B] of the rows of examples that have two rows each."""
    return values[0::2], values[1::2]


def row_tokens(rows: TokenBatch) -> Tensor:
    """[R] fp32: how many tokens of each row are scored."""
    return row_sums(torch.ones(len(rows.scored), device=rows.tokens.device), rows)


def row_logprobs(out: TokenLogprobs, rows: TokenBatch, ld_alpha: float = 1.0) -> Tensor:
    """[R], nats: log p of each row's response.

    Args:
        out: of the scored tokens.
        rows: with `ld_alpha` below 1, pairs.
        ld_alpha: weight of tokens past the length of the shorter response of an example.
    """
    if ld_alpha == 1:
        return row_sums(out.logp, rows)
    return row_sums(out.logp * _ld_weights(rows, ld_alpha), rows)


def _ld_weights(rows: TokenBatch, alpha: float) -> Tensor:
    """[S]: LD-DPO's weight of each scored token."""
    counts = row_tokens(rows)
    ends = counts.long().cumsum(0)  # of integers, whose order does not matter: see deterministic
    index = torch.arange(len(rows.scored), device=counts.device)
    token = index - (ends - counts)[rows.row_of_scored]
    example = rows.first_of_example.cumsum(0) - 1
    shortest = torch.full((rows.count["examples"],), torch.inf, device=counts.device)
    shared = shortest.scatter_reduce(0, example, counts, "amin")[example]
    return ld_weight(token, shared[rows.row_of_scored], alpha)

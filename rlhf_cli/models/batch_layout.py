"""What the rows of an example begin with alike, computed once: the prompt of a pair, of a group."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.models.attention import RowLayout

LEAST = 32
"""Tokens that rows must have in common. Attention takes short rows together, and rows that follow
on others by themselves, so that a few shared tokens cost more than they save."""


@dataclass(frozen=True)
class FlatRows:
    """Rows as they go into a model, one after another.

    Attributes:
        tokens: [n] int64; what rows have in common stands once, before the rest of each.
        positions: [n] int64, of each token in its row.
        layout: the rows, and which of them go on from which.
        index: [N] int64, where each token of the rows is among these; none where all stand alone.
    """

    tokens: Tensor
    positions: Tensor
    layout: RowLayout
    index: Tensor | None = None


def shared_prefixes(rows: TokenBatch) -> list[int]:
    """How many tokens of each row are computed once for all rows of its example."""
    return [common if common >= LEAST else 0 for common in rows.common]


def saved_tokens(rows: TokenBatch) -> int:
    """How many tokens of the rows are not computed, because another row begins with them."""
    shared = shared_prefixes(rows)
    again = [owner == last for last, owner in pairwise([-1, *rows.owners])]
    return sum(count for count, repeated in zip(shared, again, strict=True) if repeated)


def lay_out(rows: TokenBatch, *, share: bool) -> FlatRows:
    """Rows in the order of their tokens.

    Args:
        rows: those of one example stand together.
        share: compute once what all rows of an example begin with.
    """
    common = shared_prefixes(rows) if share else []
    if not any(common):
        return FlatRows(rows.tokens, rows.positions, RowLayout(tuple(rows.sizes)))
    bounds: list[tuple[int, int]] = []  # of each segment, in the tokens of the rows
    follows: list[int] = []
    index: list[Tensor] = []
    size = before = first = start = 0
    last = -1
    for length, shared, owner in zip(rows.sizes, common, rows.owners, strict=True):
        if shared and owner != last:
            first, before = size, len(bounds)
            bounds.append((start, start + shared))
            follows.append(-1)
            size += shared
        index += [torch.arange(first, first + shared), torch.arange(size, size + length - shared)]
        bounds.append((start + shared, start + length))
        follows.append(before if shared else -1)
        size += length - shared
        start, last = start + length, owner
    device = rows.tokens.device
    chosen = torch.cat([torch.arange(*pair) for pair in bounds]).to(device, non_blocking=True)
    segments = tuple(stop - start for start, stop in bounds)
    return FlatRows(
        rows.tokens[chosen],
        rows.positions[chosen],
        RowLayout(segments, tuple(follows)),
        torch.cat(index).to(device, non_blocking=True),
    )


@dataclass(frozen=True)
class TokenIndex:
    """Where the tokens of rows are in what a model computes of them.

    Attributes:
        index: [N], where each token of the rows is, batch and sequence counted as one; none where
            flat rows have no tokens in common, and each token has its own place.
    """

    index: Tensor | None = None

    def take(self, values: Tensor, positions: Tensor) -> Tensor:
        """[P, ...]: the values of the tokens at some positions of the rows.

        Args:
            values: [1, n, ...] of flat rows, or [R, T, ...] of padded ones.
            positions: [P] int64, indices of `Rows.tokens`.
        """
        flat = values.flatten(0, 1)
        return flat.index_select(0, positions if self.index is None else self.index[positions])


def pad(
    rows: TokenBatch, side: Literal["left", "right"] = "right", token: int = 0
) -> tuple[Tensor, Tensor]:
    """[R, T] tokens and mask (1 keeps)."""
    parts = rows.tokens.split(rows.sizes)
    kept = [torch.ones_like(part) for part in parts]
    tokens = pad_sequence(list(parts), True, padding_value=token, padding_side=side)
    return tokens, pad_sequence(kept, True, padding_side=side)


def padded_index(rows: TokenBatch, side: Literal["left", "right"]) -> Tensor:
    """[N] int64: where `pad` puts each token, in its table [R, T] taken as one sequence."""
    width = max(rows.sizes)
    first = torch.arange(len(rows.sizes), device=rows.tokens.device) * width
    if side == "left":
        first = first + width - rows.lengths
    return first[rows.row_of_token] + rows.positions

"""What the rows of an example begin with alike, computed once: the prompt of a pair, of a group."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

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
    return [common if common >= LEAST else 0 for common in rows.shared_prefix_lengths]


def saved_tokens(rows: TokenBatch) -> int:
    """How many tokens of the rows are not computed, because another row begins with them."""
    shared = shared_prefixes(rows)
    again = [owner == last for last, owner in pairwise([-1, *rows.example_ids])]
    return sum(count for count, repeated in zip(shared, again, strict=True) if repeated)


def lay_out(rows: TokenBatch, *, share: bool) -> FlatRows:
    """Rows in the order of their tokens.

    Args:
        rows: those of one example stand together.
        share: compute once what all rows of an example begin with.
    """
    common = shared_prefixes(rows) if share else []
    if not any(common):
        return FlatRows(rows.tokens, rows.positions, RowLayout(tuple(rows.row_lengths)))
    bounds: list[tuple[int, int]] = []  # of each segment, in the tokens of the rows
    follows: list[int] = []
    index: list[Tensor] = []
    size = before = first = start = 0
    last = -1
    for length, shared, owner in zip(rows.row_lengths, common, rows.example_ids, strict=True):
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

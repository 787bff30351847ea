"""What the rows of an example begin with alike, computed once: the prompt of a pair, of a group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_cli.data.batches import Rows
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


def lay_out(rows: Rows, *, share: bool) -> FlatRows:
    """Rows in the order of their tokens.

    Args:
        rows: those of one example stand together.
        share: compute once what all rows of an example begin with.
    """
    lengths = rows.lengths.tolist()
    common = _common(rows, lengths) if share else [0] * len(lengths)
    if not any(common):
        return FlatRows(rows.tokens, rows.positions, RowLayout(tuple(lengths)))
    bounds: list[tuple[int, int]] = []  # of each segment, in the tokens of the rows
    follows: list[int] = []
    index: list[Tensor] = []
    size = before = first = 0
    starts, opens = rows.starts.tolist(), rows.first_of_example.tolist()
    for start, length, shared, new in zip(starts, lengths, common, opens, strict=True):
        if shared and new:
            first, before = size, len(bounds)
            bounds.append((start, start + shared))
            follows.append(-1)
            size += shared
        index += [torch.arange(first, first + shared), torch.arange(size, size + length - shared)]
        bounds.append((start + shared, start + length))
        follows.append(before if shared else -1)
        size += length - shared
    chosen = torch.cat([torch.arange(*pair) for pair in bounds]).to(rows.tokens.device)
    segments = tuple(stop - start for start, stop in bounds)
    return FlatRows(
        rows.tokens[chosen],
        rows.positions[chosen],
        RowLayout(segments, tuple(follows)),
        torch.cat(index).to(rows.tokens.device),
    )


def _common(rows: Rows, lengths: list[int]) -> list[int]:
    """How many tokens each row has in common with all rows of its example, from the start on."""
    counts = rows.example_of_row.unique_consecutive(return_counts=True)[1].tolist()
    if max(counts) == 1:
        return [0] * len(lengths)
    found: list[int] = []
    parts = rows.tokens.cpu().split(lengths)
    for count in counts:
        found += [_alike(parts[len(found) : len(found) + count])] * count
    return found


def _alike(parts: Sequence[Tensor]) -> int:
    """How many tokens rows begin with alike; 0 for a row alone, and where it would not pay."""
    most = min(map(len, parts)) - 1  # each row keeps a token of its own
    if len(parts) == 1 or most < LEAST:
        return 0
    begin = torch.stack([part[:most] for part in parts])
    alike = int((begin == begin[0]).all(0).int().cumprod(0).sum())
    return alike if alike >= LEAST else 0

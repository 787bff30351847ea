"""Layouts of a batch for a model: flat rows, whose shared prefixes are computed once, or padded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.models.attention import RowLayout
from rlhf_cli.models.context_parallel import ContextChunk, Places

MIN_SHARED_TOKENS = 32
"""Shortest prefix that is computed once. Attention computes short rows together, but rows that
continue a prefix in groups of their own, so that a few shared tokens cost more than they save."""


@dataclass(frozen=True)
class FlatBatch:
    """Rows as one sequence, in the order in which the model takes them.

    Attributes:
        tokens: [n] int64; a shared prefix stands once, before the remainders of its rows.
        positions: [n] int64, of each token in its row.
        layout: borders of the rows, and which of them continue which.
        index: [N] int64, index in `tokens` of each token of the batch; none where no prefix is
            shared, and the two are equal.
    """

    tokens: Tensor
    positions: Tensor
    layout: RowLayout
    index: Tensor | None = None


@dataclass(frozen=True)
class TokenIndex:
    """Maps the tokens of a batch to their positions in a model's output.

    Attributes:
        index: [N], position of each token, batch and sequence counted as one; none where the output
            has the tokens in the batch's own order.
        chunk: the part of the sequence that the output has; none for the whole.
    """

    index: Tensor | None = None
    chunk: ContextChunk | None = None

    def select(self, positions: Tensor) -> Selection:
        """Find some tokens [P] in the output, by their indices in `TokenBatch.tokens`."""
        index = positions if self.index is None else self.index[positions]
        if self.chunk is None:
            return Selection(index)
        places = self.chunk.place(index)
        return Selection(places.local, places)


@dataclass(frozen=True)
class Selection:
    """Some tokens [P] of a batch in a model's output, of which this rank computes p.

    Attributes:
        index: [p], positions of this rank's tokens in its output.
        places: where the others are computed; none where this rank computes all.
    """

    index: Tensor
    places: Places | None = None

    def take(self, values: Tensor) -> Tensor:
        """Select this rank's [p, ...] of values [1, n, ...] (flat rows) or [R, T, ...] (padded)."""
        return values.flatten(0, 1).index_select(0, self.index)

    def own(self, values: Tensor) -> Tensor:
        """Select this rank's [p, ...] of values [P, ...] that are known for all tokens."""
        return values if self.places is None else values[self.places.own]

    def gather(self, values: Tensor) -> Tensor:
        """Gather the values [P, ...] of all tokens from those [p, ...] that each rank computed."""
        return values if self.places is None else self.places.gather(values)


def shared_prefixes(rows: TokenBatch) -> list[int]:
    """Count the tokens of each row that are computed once for all rows of its example."""
    return [common if common >= MIN_SHARED_TOKENS else 0 for common in rows.shared_prefix_lengths]


def saved_tokens(rows: TokenBatch) -> int:
    """Count the tokens that are not computed because another row begins with them."""
    shared = shared_prefixes(rows)
    repeats = [owner == last for last, owner in pairwise([-1, *rows.example_ids])]
    return sum(count for count, repeated in zip(shared, repeats, strict=True) if repeated)


def build_flat_batch(rows: TokenBatch, *, share: bool) -> FlatBatch:
    """Concatenate rows.

    Args:
        rows: those of one example stand together.
        share: put a prefix that all rows of an example have in common there once.
    """
    common = shared_prefixes(rows) if share else []
    if not any(common):
        return FlatBatch(rows.tokens, rows.positions, RowLayout(tuple(rows.row_lengths)))
    segments: list[tuple[int, int]] = []  # start and stop in `rows.tokens`
    follows: list[int] = []
    index: list[Tensor] = []
    size = prefix = first = start = 0
    last = -1
    for length, shared, owner in zip(rows.row_lengths, common, rows.example_ids, strict=True):
        if shared and owner != last:
            first, prefix = size, len(segments)
            segments.append((start, start + shared))
            follows.append(-1)
            size += shared
        index += [torch.arange(first, first + shared), torch.arange(size, size + length - shared)]
        segments.append((start + shared, start + length))
        follows.append(prefix if shared else -1)
        size += length - shared
        start, last = start + length, owner
    device = rows.tokens.device
    chosen = torch.cat([torch.arange(*pair) for pair in segments]).to(device, non_blocking=True)
    lengths = tuple(stop - start for start, stop in segments)
    return FlatBatch(
        rows.tokens[chosen],
        rows.positions[chosen],
        RowLayout(lengths, tuple(follows)),
        torch.cat(index).to(device, non_blocking=True),
    )


def cut_chunk(whole: FlatBatch, ranks: Ranks) -> FlatBatch:
    """Cut out the chunk of the sequence that this rank of a context group computes."""
    if ranks.world_size == 1:
        return whole
    chunk = ContextChunk(ranks, len(whole.tokens))
    layout = replace(whole.layout, chunk=chunk)
    tokens, positions = chunk.cut(whole.tokens), chunk.cut(whole.positions)
    return replace(whole, tokens=tokens, positions=positions, layout=layout)


def pad(
    rows: TokenBatch, side: Literal["left", "right"] = "right", token: int = 0
) -> tuple[Tensor, Tensor]:
    """Pad rows to a table; return tokens and mask, both [R, T]. The mask is 1 at tokens."""
    parts = rows.tokens.split(rows.row_lengths)
    kept = [torch.ones_like(part) for part in parts]
    tokens = pad_sequence(list(parts), True, padding_value=token, padding_side=side)
    return tokens, pad_sequence(kept, True, padding_side=side)


def padded_index(rows: TokenBatch, side: Literal["left", "right"]) -> Tensor:
    """Compute the position [N], int64, of each token in the table of `pad`, read as a sequence."""
    width = max(rows.row_lengths)
    first = torch.arange(len(rows.row_lengths), device=rows.tokens.device) * width
    if side == "left":
        first = first + width - rows.lengths
    return first[rows.row_of_token] + rows.positions

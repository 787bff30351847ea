"""Equally many passes on all ranks, which sharded weights need: every pass is collective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.distributed.ranks import Ranks

FIELDS = ("tokens", "lengths", "scored", "example_of_row")
"""Tensors of a TokenBatch beside its columns."""


def equal_passes(
    own: Sequence[TokenBatch], ranks: Ranks, device: torch.device | str = "cpu"
) -> list[TokenBatch]:
    """Add fillers until all ranks have equally many micro-batches of each kind, in one order.

    A kind is the columns that a batch has and whether it is backpropagated: batches of one kind go
    through the same modules. Without sharding, the batches are returned as they are.

    Args:
        own: micro-batches of this rank; may be empty.
        ranks: ranks of the run; all call this together.
        device: of the fillers; a rank without batches gets an example of another rank, which comes
            through the host.

    Returns:
        The batches, those of one kind together in their order, and the fillers of each kind after
        them.
    """
    if not ranks.sharded or ranks.world_size == 1:
        return list(own)
    by_kind: dict[str, list[TokenBatch]] = {}
    for rows in own:
        by_kind.setdefault(_kind(rows), []).append(rows)
    counts = ranks.all_gather_json({kind: len(batches) for kind, batches in by_kind.items()})
    found: list[TokenBatch] = []
    for kind in sorted(set().union(*counts)):
        of_rank = [count.get(kind, 0) for count in counts]
        batches = by_kind.get(kind, [])
        example = _smallest_example(batches)
        if 0 in of_rank:
            example = _share(example, needs_backward=kind.startswith("True"), ranks=ranks)
        assert example is not None  # of this rank, or of another
        missing = max(of_rank) - len(batches)
        found += [*batches, *[replace(example.to(torch.device(device)), is_filler=True)] * missing]
    return found


def _kind(rows: TokenBatch) -> str:
    return f"{rows.needs_backward} {sorted(rows.columns)} {sorted(rows.token_columns)}"


def _smallest_example(batches: Sequence[TokenBatch]) -> TokenBatch | None:
    """The first example of the batch with the fewest tokens."""
    if not batches:
        return None
    return next(min(batches, key=lambda rows: len(rows.tokens)).split())


def _share(example: TokenBatch | None, *, needs_backward: bool, ranks: Ranks) -> TokenBatch:
    """Return the example of the first rank that has one."""
    own = {} if example is None else _to_tensors(example)
    tensors = next(part for part in ranks.all_gather_tensors(own) if part)
    return example if example is not None else _from_tensors(tensors, needs_backward)


def _to_tensors(rows: TokenBatch) -> dict[str, Tensor]:
    found = {name: getattr(rows, name) for name in FIELDS}
    found |= {f"columns/{name}": values for name, values in rows.columns.items()}
    return found | {f"token_columns/{name}": values for name, values in rows.token_columns.items()}


def _from_tensors(tensors: dict[str, Tensor], needs_backward: bool) -> TokenBatch:
    def part(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

    tokens, lengths, scored, example_of_row = (tensors[name] for name in FIELDS)
    return TokenBatch(
        tokens,
        lengths,
        scored,
        example_of_row,
        part("columns/"),
        part("token_columns/"),
        needs_backward,
    )

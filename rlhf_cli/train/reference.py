"""What a policy is compared with: the log-probs of the same rows under a frozen model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlhf_cli.context import RunContext, say
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.cache import Entry, load_entry, store_entry
from rlhf_cli.data.examples import Examples
from rlhf_cli.data.loader import collate, parts
from rlhf_cli.models.parameters import cast_for_compute
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.wrapper import without_dropout

COLUMN = "reference"
"""Of `Rows.columns`: what the reference gives a row, nats."""

SHELF = "reference"
CHECKED = 4
"""Examples whose stored numbers are computed again before the rest is believed."""

MOST_DRIFT = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Nats a token, in the mean, by which a stored number may differ from one computed here: the rows
it is computed with are others, and rounding with them."""

RowLogprobs = Callable[[Policy, TokenBatch, str], Tensor]
"""[R], nats, of a model, rows and a role: what the losses compare."""


def with_reference(
    examples: Examples,
    reference: Policy,
    of: RowLogprobs,
    settings: str,
    max_tokens: int,
    ctx: RunContext,
) -> Examples:
    """Examples with a column `reference`, computed once and stored beside the data cache.

    The stored numbers belong to these tokens, these weights and these settings; some of them are
    computed again before they are used.

    Args:
        examples: of a whole data set.
        reference: not trained yet, or never.
        of: what is stored of a row.
        settings: what the numbers depend on beside tokens and weights.
        max_tokens: of a micro-batch.
        ctx: compute type, and the ranks that share the work.
    """
    with torch.no_grad(), without_dropout(reference), cast_for_compute(reference, ctx.compute):

        def compute(chosen: list[int]) -> NDArray[np.float32]:
            rows = collate(examples, chosen).to(reference.device)
            found: NDArray[np.float32] = of(reference, rows, "policy").float().cpu().numpy()
            return found

        key = _key(examples, reference, settings, ctx)
        values = _stored(key, examples, compute, ctx)
        if values is None:
            values = _compute(examples, compute, max_tokens, ctx)
            if ctx.ranks.main:
                store_entry(key, Entry({COLUMN: values}, {}), SHELF)
    return replace(examples, columns={**examples.columns, COLUMN: values})


def _compute(
    examples: Examples,
    compute: Callable[[list[int]], NDArray[np.float32]],
    max_tokens: int,
    ctx: RunContext,
) -> NDArray[np.float32]:
    """The numbers of all rows; micro-batches are dealt out to the ranks."""
    say(f"reference: log-probs of {len(examples):,} examples, computed once")
    every = list(parts(examples, np.arange(len(examples)), max_tokens))
    size = ctx.ranks.size
    own = [compute(part) for part in every[ctx.ranks.rank :: size]]
    found = ctx.ranks.concatenate(torch.from_numpy(np.concatenate([np.empty(0, np.float32), *own])))
    order = [part for rank in range(size) for part in every[rank::size]]
    values = np.empty(len(examples.row_starts) - 1, np.float32)
    values[np.concatenate([_rows_of(examples, part) for part in order])] = found.numpy()
    return values


def _stored(
    key: str,
    examples: Examples,
    compute: Callable[[list[int]], NDArray[np.float32]],
    ctx: RunContext,
) -> NDArray[np.float32] | None:
    """The numbers in the cache, if they are there and those of this model."""
    entry = load_entry(key, SHELF)
    if not all(ctx.ranks.gather(entry is not None)) or entry is None:
        return None
    values: NDArray[np.float32] = entry.arrays[COLUMN]
    some = sorted({*np.linspace(0, len(examples) - 1, CHECKED).astype(int).tolist()})
    drift = np.abs(values[_rows_of(examples, some)] - compute(some)).sum()
    tokens = sum(examples.token_starts[i + 1] - examples.token_starts[i] for i in some)
    if not drift / tokens <= MOST_DRIFT[ctx.compute]:
        say(
            f"reference: the stored log-probs ({key}) are not those of this model (they differ by "
            f"{drift / tokens:.1e} nats a token); computing them anew"
        )
        return None
    say(f"reference: stored log-probs ({key}), {len(some)} of {len(examples):,} examples checked")
    return values


def _rows_of(examples: Examples, chosen: list[int]) -> NDArray[np.int64]:
    """Indices of the rows of some examples, in their order."""
    starts = examples.example_starts
    return np.concatenate([np.arange(starts[i], starts[i + 1]) for i in chosen])


def _key(examples: Examples, reference: Policy, settings: str, ctx: RunContext) -> str:
    whole = hashlib.sha256(f"{settings} {ctx.compute_name}".encode())
    whole.update(f"{reference.implementation.name} {reference.flat}".encode())
    for array in (examples.tokens, examples.trained, examples.row_starts, examples.example_starts):
        whole.update(np.ascontiguousarray(array).data.cast("B"))
    whole.update(weights_key(reference).encode())
    return whole.hexdigest()[:32]


def weights_key(module: nn.Module) -> str:
    """Changes with every bit of a model's weights."""
    whole = hashlib.sha256()
    for name, param in module.named_parameters():
        bits = param.detach().contiguous().view(torch.uint8).cpu()
        whole.update(name.encode())
        whole.update(bits.numpy().data.cast("B"))
    return whole.hexdigest()

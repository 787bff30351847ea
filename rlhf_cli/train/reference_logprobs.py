"""Log-probs of rows under the reference model, computed once and cached on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlhf_cli.cache import CacheEntry, load_entry, store_entry
from rlhf_cli.console import logger
from rlhf_cli.context import RunContext
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.examples import Examples
from rlhf_cli.data.loader import collate
from rlhf_cli.data.sampler import group_examples
from rlhf_cli.distributed.ranks import is_first_on_machine
from rlhf_cli.memory.phase import phase
from rlhf_cli.models.parameters import cast_for_compute
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.weights_hash import hash_weights
from rlhf_cli.models.wrapper import without_dropout

REFERENCE_COLUMN = "reference"
"""Column of `TokenBatch.columns`: log-prob of each row under the reference, nats."""

CACHE_KIND = "reference"
CHECKED_EXAMPLES = 4
"""Number of examples whose cached log-probs are recomputed before the cache is used."""

MAX_DRIFT = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Mean difference in nats per token that is allowed between a cached and a recomputed log-prob:
other micro-batches round differently."""

RowLogprobs = Callable[[Policy, TokenBatch, str], Tensor]
"""(model, rows, role) -> [R], nats: the log-probs that the losses compare."""


@phase("prepare")
def add_reference_column(
    examples: Examples,
    reference: Policy,
    logprobs: RowLogprobs,
    settings: str,
    max_tokens: int,
    ctx: RunContext,
) -> Examples:
    """Add a column `reference` to the examples, from the cache where it has it.

    The cache key covers tokens, weights and settings; some cached values are recomputed and
    compared before the rest is used.

    Args:
        examples: the whole data set.
        reference: the reference model, or the policy before its first step.
        logprobs: computes the values of rows.
        settings: what the values depend on beside tokens and weights.
        max_tokens: tokens of a micro-batch.
        ctx: compute type, and the ranks that share the work.
    """
    with torch.no_grad(), without_dropout(reference), cast_for_compute(reference, ctx.compute):

        def compute(chosen: list[int]) -> NDArray[np.float32]:
            rows = collate(examples, chosen).to(reference.device)
            found: NDArray[np.float32] = logprobs(reference, rows, "policy").float().cpu().numpy()
            return found

        key = _key(examples, reference, settings, ctx)
        values = _load_cached(key, examples, compute, ctx)
        if values is None:
            values = _compute(examples, compute, max_tokens, ctx)
            if is_first_on_machine(ctx.ranks):
                store_entry(key, CacheEntry({REFERENCE_COLUMN: values}, {}), CACHE_KIND)
    return replace(examples, columns={**examples.columns, REFERENCE_COLUMN: values})


def _compute(
    examples: Examples,
    compute: Callable[[list[int]], NDArray[np.float32]],
    max_tokens: int,
    ctx: RunContext,
) -> NDArray[np.float32]:
    """Values of all rows; the ranks share the micro-batches."""
    logger.info(f"reference: log-probs of {len(examples):,} examples, computed once")
    every = list(group_examples(examples, np.arange(len(examples)), max_tokens))
    ranks, size = ctx.ranks.data, ctx.ranks.data.world_size
    own = [compute(part) for part in every[ranks.rank :: size]]
    if ranks.sharded and len(own) * size < len(every):
        compute(every[0][:1])  # as many passes as the other ranks
    found = ranks.all_gather_concat(
        torch.from_numpy(np.concatenate([np.empty(0, np.float32), *own]))
    )
    order = [part for rank in range(size) for part in every[rank::size]]
    values = np.empty(len(examples.row_starts) - 1, np.float32)
    values[np.concatenate([_rows_of(examples, part) for part in order])] = found.numpy()
    return values


def _load_cached(
    key: str,
    examples: Examples,
    compute: Callable[[list[int]], NDArray[np.float32]],
    ctx: RunContext,
) -> NDArray[np.float32] | None:
    """Cached values, or None if there are none or they differ from this model's."""
    entry = load_entry(key, CACHE_KIND)
    if not all(ctx.ranks.all_gather_json(entry is not None)) or entry is None:
        return None
    values: NDArray[np.float32] = entry.arrays[REFERENCE_COLUMN]
    some = sorted({*np.linspace(0, len(examples) - 1, CHECKED_EXAMPLES).astype(int).tolist()})
    drift = np.abs(values[_rows_of(examples, some)] - compute(some)).sum()
    tokens = sum(examples.token_starts[i + 1] - examples.token_starts[i] for i in some)
    if ctx.ranks.any(not drift / tokens <= MAX_DRIFT[ctx.compute]):
        logger.info(
            f"reference: the stored log-probs ({key}) are not those of this model (they differ by "
            f"{drift / tokens:.1e} nats a token); computing them anew"
        )
        return None
    logger.info(
        f"reference: stored log-probs ({key}), {len(some)} of {len(examples):,} examples checked"
    )
    return values


def _rows_of(examples: Examples, chosen: list[int]) -> NDArray[np.int64]:
    """Row indices of some examples, in their order."""
    starts = examples.example_starts
    return np.concatenate([np.arange(starts[i], starts[i + 1]) for i in chosen])


def _hash_rows(examples: Examples) -> str:
    whole = hashlib.sha256()
    for array in (
        examples.tokens,
        examples.loss_mask,
        examples.row_starts,
        examples.example_starts,
    ):
        whole.update(np.ascontiguousarray(array).data.cast("B"))
    return whole.hexdigest()


def _key(examples: Examples, reference: Policy, settings: str, ctx: RunContext) -> str:
    whole = hashlib.sha256(f"{settings} {ctx.compute_name}".encode())
    whole.update(f"{reference.implementation.name} {reference.flat}".encode())
    # rank 0 alone reads all rows
    [rows, *_] = ctx.ranks.all_gather_json(_hash_rows(examples) if ctx.ranks.is_main else "")
    whole.update(rows.encode())
    whole.update(hash_weights(reference, ctx.ranks).encode())
    return whole.hexdigest()[:32]

"""A hash of a model's weights that does not depend on how processes share them.

A cryptographic hash reads its bytes in order, so that no process could hash its own part. Here each
element is multiplied by a pseudo-random number that depends on its place, and the products are
added modulo 2^64, twice with other numbers: sums of parts add up to that of the whole (multilinear
hashing; Carter and Wegman 1979). Two models that differ have the same sums with a probability of
about 2^-96; nothing here guards against weights that someone made for that purpose.
"""

from __future__ import annotations

import functools
import hashlib
import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlhf_cli.distributed.ranks import SINGLE_PROCESS, Ranks
from rlhf_cli.models.sharding import layout_of, local_tensor, shards_of

BLOCK = 1 << 16
"""Elements that have multipliers of their own; those of a later block get another factor too."""

CHUNK = 2 * BLOCK
"""Elements that are widened to 64 bits at a time: 1 MiB, which stays in a processor's cache."""

LANES = 2
MASK = (1 << 64) - 1

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def hash_weights(module: nn.Module, ranks: Ranks = SINGLE_PROCESS) -> str:
    """SHA-256 over names, types, shapes and sums of all weights.

    Sharded weights count in the type in which they are gathered for a pass, so that the hash is
    that of the same model without sharding.

    Args:
        module: its weights may be sharded.
        ranks: share the work; all of them call this together.
    """
    params = shards_of(module)
    gathered = getattr(module, "gathered_dtype", None)
    types = {name: _type_in_a_pass(param, gathered) for name, param in params.items()}
    own = [_own_sums(param, types[name], ranks) for name, param in params.items()]
    every = ranks.all_gather_json(own)
    whole = hashlib.sha256()
    for (name, param), sums in zip(params.items(), zip(*every, strict=True), strict=True):
        totals = [sum(lane) & MASK for lane in zip(*sums, strict=True)]
        whole.update(f"{name} {types[name]} {tuple(param.shape)} {totals}\n".encode())
    return whole.hexdigest()


def _type_in_a_pass(param: Tensor, gathered: torch.dtype | None) -> torch.dtype:
    """Type of a parameter in a forward pass; of shards the one in which they are gathered."""
    is_cast = isinstance(param, DTensor) and param.is_floating_point()
    return gathered if is_cast and gathered is not None else param.dtype


def _own_sums(param: Tensor, dtype: torch.dtype, ranks: Ranks) -> list[int]:
    """Sums of the elements that this rank answers for; together the ranks have each once."""
    layout, own = layout_of(param), local_tensor(param).detach().to(dtype)
    bits = own.contiguous().view(_INTEGERS[own.element_size()]).flatten()
    if not isinstance(param, DTensor):
        part = ranks.shard(len(bits))
        return element_sums(bits[part.start : part.stop], part.start)
    start = layout.start * math.prod(layout.shape[1:])
    return element_sums(bits, start) if layout.writes else [0] * LANES


def element_sums(bits: Tensor, start: int) -> list[int]:
    """Sums of a part of a tensor; those of adjoining parts add up, modulo 2^64.

    Args:
        bits: [N] integers.
        start: index of the first one in the whole tensor, in elements.
    """
    totals = [0] * LANES
    end = start + len(bits)
    for first in range(start - start % CHUNK, end, CHUNK):
        low, high = max(first, start), min(first + CHUNK, end)
        piece = bits[low - start : high - start].to(torch.int64)
        blocks = nn.functional.pad(piece, (low - first, -(high - first) % BLOCK)).view(-1, BLOCK)
        for lane, numbers in enumerate(_multipliers(bits.device)):
            for index, value in enumerate(_products(blocks, numbers), start=first // BLOCK):
                totals[lane] += value * _block_factor(index, lane)
    return [total & MASK for total in totals]


def _products(blocks: Tensor, numbers: Tensor) -> list[int]:
    """Sum of each block's products; integers of 64 bits overflow as they should."""
    if blocks.device.type == "cpu":
        return list((blocks @ numbers).tolist())
    return list((blocks * numbers).sum(1).tolist())  # CUDA has no product of integer matrices


@functools.cache
def _multipliers(device: torch.device) -> tuple[Tensor, ...]:
    """Odd 64-bit numbers, [BLOCK] of each lane."""
    generator = torch.Generator().manual_seed(1979)
    low, high = -(1 << 63), (1 << 63) - 1
    every = (torch.randint(low, high, (BLOCK,), generator=generator) for _ in range(LANES))
    return tuple((numbers | 1).to(device) for numbers in every)


def _block_factor(index: int, lane: int) -> int:
    """Odd 64-bit number of a block: the generator splitmix64 (Steele et al. 2014)."""
    value = (index * LANES + lane + 1) * 0x9E3779B97F4A7C15 & MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
    return (value ^ value >> 31) | 1

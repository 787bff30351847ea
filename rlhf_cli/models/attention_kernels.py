"""All rows of a flat sequence in one attention call, on CUDA: flash attention's varlen kernel."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

WIDEST = 256
"""Of a head, in flash attention."""

MOST_OFF = 0.05
"""Of the check's values, whose deviation is about 1: bf16 rounds by 0.4 %."""


@lru_cache
def obstacle(device: torch.device, dtype: torch.dtype, width: int) -> str:
    """Why rows of heads of this width are not computed here in one call, or empty.

    What seems to run is tried once on a few rows: a kernel that took the positions of rows that go
    on from others in another way would give other numbers, in silence.
    """
    if device.type != "cuda":
        return "needs CUDA"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"has no kernel for {str(dtype).removeprefix('torch.')}"
    if width > WIDEST or width % 8:
        return f"has no kernel for heads of {width}"
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return f"is not in torch {torch.__version__}"
    if not {"window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys():
        return f"has neither windows nor shared heads in torch {torch.__version__}"
    try:
        off = error(device, dtype, width)
    except (RuntimeError, NotImplementedError) as reason:  # a GPU before Ampere
        return f"does not run here ({str(reason).splitlines()[0]})"
    return "" if off <= MOST_OFF else f"is off by {off:.1e} here"


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    follows: Sequence[int],
    scale: float,
    window: int | None,
) -> Tensor:
    """Causal attention within each row, and to the row that it goes on from.

    Args:
        query: [N, H, D], the rows one after another.
        key: [N, K, D]; each key head serves H / K query heads.
        value: [N, K, D].
        lengths: of the rows, > 0, adding up to N.
        follows: the row before each row that it goes on from, or -1; empty where all begin
            themselves.
        scale: factor on the scores.
        window: how many tokens, itself included, a token sees; none: all before it.

    Returns:
        [N, H, D].
    """
    from torch.nn.attention.varlen import varlen_attn

    seen = list(lengths)
    if any(before >= 0 for before in follows):
        seen = [
            length + (lengths[before] if before >= 0 else 0)
            for length, before in zip(lengths, follows, strict=True)
        ]
        key, value = (_behind(tensor, lengths, follows) for tensor in (key, value))
    found = varlen_attn(
        query,
        key,
        value,
        _bounds(tuple(lengths), query.device),
        _bounds(tuple(seen), query.device),
        max(lengths),
        max(seen),
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(found, Tensor)  # a pair only where the log-sum-exp is asked for
    return found


def _behind(tensor: Tensor, lengths: Sequence[int], follows: Sequence[int]) -> Tensor:
    """Each row behind the one that it goes on from.

    Of slices: the gradients of an index would be added up in any order.
    """
    rows = tensor.split(list(lengths))
    parts: list[Tensor] = []
    for row, before in zip(rows, follows, strict=True):
        parts += [row] if before < 0 else [rows[before], row]
    return torch.cat(parts)


@lru_cache(maxsize=8)
def _bounds(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """[R + 1] int32; all layers of a pass ask for the same."""
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return bounds.to(device, non_blocking=True)


def error(device: torch.device, dtype: torch.dtype, width: int) -> float:
    """Largest difference from plain attention in fp32, of rows two of which go on from a third."""
    lengths, follows, window = (9, 4, 6, 5), (-1, 0, 0, -1), 7
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(3, sum(lengths), 2, width, generator=generator).to(device, dtype)
    query, key, value = drawn[0], drawn[1, :, :1], drawn[2, :, :1]
    scale = width**-0.5
    found = []
    for limit in (None, window):
        ours = varlen_attention(query, key, value, lengths, follows, scale, limit)
        rows = [tensor.float().split(list(lengths)) for tensor in (query, key, value)]
        plain = [_plain(rows, row, before, limit) for row, before in enumerate(follows)]
        found.append(float((ours.float() - torch.cat(plain)).abs().max()))
    return max(found)


def _plain(rows: Sequence[Sequence[Tensor]], row: int, before: int, window: int | None) -> Tensor:
    """[T, H, D]: one row, by its mask."""
    query = rows[0][row]
    together = [row] if before < 0 else [before, row]
    key, value = (torch.cat([part[one] for one in together]) for part in rows[1:])
    distance = torch.arange(len(query))[:, None] + len(key) - len(query) - torch.arange(len(key))
    seen = (distance >= 0) & (distance < (window or len(key)))
    q, k, v = (tensor.transpose(0, 1) for tensor in (query, key, value))
    k, v = (tensor.expand(len(q), -1, -1) for tensor in (k, v))
    return F.scaled_dot_product_attention(q, k, v, seen.to(query.device)).transpose(0, 1)


LEAST_MASK = 512
"""Queries that a kept mask has at least, so that it seldom grows."""


def matmul_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: int,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """Scores, softmax, average. Padding on the right lies after every real query: never seen."""
    rows, heads, length, _ = q.shape
    mask = _causal_mask(k.shape[2], window, q.dtype, q.device)[start : start + length]
    q, k, v = (tensor.flatten(0, 1) for tensor in (q, k, v))
    if softcap is None:
        scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale)
    else:
        scores = softcap * torch.tanh(q @ k.transpose(1, 2) * (scale / softcap)) + mask
    average: Tensor = scores.softmax(-1) @ v
    return average.view(rows, heads, *average.shape[1:])


def sdpa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: int,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """SDPA, the fused kernel, which never holds the scores of a long row."""
    length, seen = q.shape[2], k.shape[2]
    if window is not None and window < seen:
        mask = _causal_mask(seen, window, q.dtype, q.device)[start:]
    elif start:
        mask = causal_lower_right(length, seen)  # by which CUDA's fused kernels need no mask
    else:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


_MASKS: dict[tuple[int | None, torch.dtype, torch.device], Tensor] = {}


def _causal_mask(
    length: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """[length, length], 0 where key <= query (and within the window), else -inf. Kept and grown."""
    kept = _MASKS.get((window, dtype, device))
    if kept is None or len(kept) < length:
        size = max(length, LEAST_MASK)
        index = torch.arange(size, device=device)
        distance = index[:, None] - index[None, :]
        hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
        kept = torch.zeros(size, size, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
        _MASKS[(window, dtype, device)] = kept
    return kept[:length, :length]

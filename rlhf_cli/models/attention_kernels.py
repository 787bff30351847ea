"""Attention kernels for flat rows: flash attention's varlen kernel, plain products, and SDPA."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

MAX_HEAD_WIDTH = 256
"""Largest head dimension that flash attention supports."""

MAX_ERROR = 0.05
"""Largest absolute error that the check accepts; its values have a deviation of about 1, and bf16
rounds by 0.4 %."""

MIN_MASK_LENGTH = 512
"""Least number of queries of a cached mask, so that it seldom grows."""

_MASKS: dict[tuple[int | None, torch.dtype, torch.device], Tensor] = {}


@lru_cache
def unavailable_reason(device: torch.device, dtype: torch.dtype, width: int) -> str:
    """Say why heads of this width cannot use the varlen kernel here; empty where they can.

    The kernel is tried once on a few rows: one that aligned the rows that continue others in
    another way would silently give other numbers.
    """
    if device.type != "cuda":
        return "needs CUDA"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"has no kernel for {str(dtype).removeprefix('torch.')}"
    if width > MAX_HEAD_WIDTH or width % 8:
        return f"has no kernel for heads of {width}"
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return f"is not in torch {torch.__version__}"
    if not {"window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys():
        return f"has neither windows nor shared heads in torch {torch.__version__}"
    try:
        off = max_error(device, dtype, width)
    except (RuntimeError, NotImplementedError) as reason:  # a GPU before Ampere
        return f"does not run here ({str(reason).splitlines()[0]})"
    return "" if off <= MAX_ERROR else f"is off by {off:.1e} here"


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    follows: Sequence[int],
    scale: float,
    window: int | None,
) -> Tensor:
    """Compute causal attention within each row, and to the row that it continues, in one call.

    Args:
        query: [N, H, D], the rows one after another.
        key: [N, K, D]; each key head serves H / K query heads.
        value: [N, K, D].
        lengths: of the rows, > 0, adding up to N.
        follows: index of the earlier row that each row continues, or -1; empty where none does.
        scale: factor on the scores.
        window: number of tokens, itself included, that a token sees; none for all before it.

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
        key, value = (_prepend_prefixes(tensor, lengths, follows) for tensor in (key, value))
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


def _prepend_prefixes(tensor: Tensor, lengths: Sequence[int], follows: Sequence[int]) -> Tensor:
    """Concatenate each row after the one that it continues.

    From slices: the gradients of an index would be added up in no fixed order.
    """
    rows = tensor.split(list(lengths))
    parts: list[Tensor] = []
    for row, before in zip(rows, follows, strict=True):
        parts += [row] if before < 0 else [rows[before], row]
    return torch.cat(parts)


@lru_cache(maxsize=8)
def _bounds(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Compute the row borders [R + 1], int32; cached because all layers of a pass need them."""
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return bounds.to(device, non_blocking=True)


def max_error(device: torch.device, dtype: torch.dtype, width: int) -> float:
    """Compute the largest difference from fp32 attention; two of the rows continue a third."""
    lengths, follows, window = (9, 4, 6, 5), (-1, 0, 0, -1), 7
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(3, sum(lengths), 2, width, generator=generator).to(device, dtype)
    query, key, value = random[0], random[1, :, :1], random[2, :, :1]
    scale = width**-0.5
    found = []
    for limit in (None, window):
        ours = varlen_attention(query, key, value, lengths, follows, scale, limit)
        rows = [tensor.float().split(list(lengths)) for tensor in (query, key, value)]
        plain = [_plain(rows, row, before, limit) for row, before in enumerate(follows)]
        found.append(float((ours.float() - torch.cat(plain)).abs().max()))
    return max(found)


def _plain(rows: Sequence[Sequence[Tensor]], row: int, before: int, window: int | None) -> Tensor:
    """Compute the attention [T, H, D] of one row with a mask."""
    query = rows[0][row]
    together = [row] if before < 0 else [before, row]
    key, value = (torch.cat([part[one] for one in together]) for part in rows[1:])
    distance = torch.arange(len(query))[:, None] + len(key) - len(query) - torch.arange(len(key))
    seen = (distance >= 0) & (distance < (window or len(key)))
    q, k, v = (tensor.transpose(0, 1) for tensor in (query, key, value))
    k, v = (tensor.expand(len(q), -1, -1) for tensor in (k, v))
    return F.scaled_dot_product_attention(q, k, v, seen.to(query.device)).transpose(0, 1)


def matmul_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: int,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """Compute attention by plain products: scores, softmax, average.

    Padding on the right comes after every real query, so that causality hides it.
    """
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
    """Compute attention by SDPA, the fused kernel, which never stores the scores of a long row."""
    length, seen = q.shape[2], k.shape[2]
    if window is not None and window < seen:
        mask = _causal_mask(seen, window, q.dtype, q.device)[start:]
    elif start:
        mask = causal_lower_right(length, seen)  # CUDA's fused kernels need no mask for it
    else:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def _causal_mask(
    length: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Build a mask [length, length]: 0 where key <= query and within the window, else -inf.

    The largest one is cached.
    """
    kept = _MASKS.get((window, dtype, device))
    if kept is None or len(kept) < length:
        size = max(length, MIN_MASK_LENGTH)
        index = torch.arange(size, device=device)
        distance = index[:, None] - index[None, :]
        hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
        kept = torch.zeros(size, size, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
        _MASKS[(window, dtype, device)] = kept
    return kept[:length, :length]

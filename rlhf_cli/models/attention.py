"""Our own attention implementation, `per_row`, and what a model is asked to compute with.

The implementation is chosen in three places: `models/load.py` reads `model.attention`,
`models/wrapper.py` picks flat or padded batches, and `models/probes.py` falls back to padding if a
probe finds that rows influence each other. `models/attention_kernels.py` has the kernels.

`per_row` attends within the rows of a flat sequence, without padding the model's input. It is
registered with transformers under `ATTENTION`; no mask function has that name, so the model builds
no mask and passes `RowLayout` through as a keyword.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface

from rlhf_cli.context import RunContext
from rlhf_cli.errors import ModelError
from rlhf_cli.models.attention_kernels import (
    matmul_attention,
    sdpa_attention,
    unavailable_reason,
    varlen_attention,
)
from rlhf_cli.models.config import FLASH_PACKAGES, ModelConfig
from rlhf_cli.models.context_parallel import ContextChunk

ATTENTION = "rlhf_per_row"
"""Name of `per_row` attention in transformers."""

PADDED = ("sdpa", "eager")
"""Implementations that need padded rows; all others keep flat rows apart."""

PRODUCT_LENGTH = 512
"""On a CPU, bf16 rows shorter than this use plain matrix products: up to six times as fast as SDPA,
whose bf16 backward pass is slow. In fp32 SDPA is faster (python -m benchmarks.attention)."""

STEP = 32
"""Rows in plain products are padded to a multiple of this. oneDNN compiles a kernel for each new
size, which takes longer than the product of a short row, and caches a limited number of them."""

GROUP_LENGTH = 128
"""Rows up to this length are computed together, padded on the right, to save dispatches."""

GROUP_WASTE = 1.3
"""Largest ratio of the longest to the shortest row of such a group."""

Options = tuple[float, float | None, int | None]
"""Scaling, softcap and sliding window."""


@dataclass(frozen=True)
class Group:
    """Consecutive rows that are computed together.

    Attributes:
        lengths: of the rows, > 0.
        follows: index of the one-row group that all of them continue; -1 where there is none.
    """

    lengths: tuple[int, ...]
    follows: int = -1


@dataclass(frozen=True)
class RowLayout:
    """Borders of the rows in a flat sequence, and which rows continue another.

    Attributes:
        lengths: of the rows, > 0.
        follows: index of the earlier row that each row continues, whose tokens it sees too; -1
            where there is none. Empty where no row continues another.
        chunk: the part of the sequence that this rank computes; none for the whole.
    """

    lengths: tuple[int, ...]
    follows: tuple[int, ...] = ()
    chunk: ContextChunk | None = None

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The rows in order, short rows of similar length grouped.

        A row that others continue is a group of its own. Rows that continue the same row are
        grouped where their lengths are similar.
        """
        follows = self.follows or (-1,) * len(self.lengths)
        continued = {row for row in follows if row >= 0}
        groups: list[list[int]] = []
        for row, length in enumerate(self.lengths):
            last = groups[-1] if groups else []
            sizes = [*(self.lengths[other] for other in last), length]
            similar = max(sizes) <= GROUP_WASTE * min(sizes)
            short = max(sizes) <= GROUP_LENGTH or follows[row] >= 0
            same = bool(last) and follows[row] == follows[last[0]] and not continued & {row, *last}
            if same and similar and short:
                last.append(row)
            else:
                groups.append([row])
        number_of = {group[0]: number for number, group in enumerate(groups)}
        return tuple(
            Group(tuple(self.lengths[row] for row in group), number_of.get(follows[group[0]], -1))
            for group in groups
        )


def per_row_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    row_layout: RowLayout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention within each row of a flat sequence.

    Args:
        module: the calling attention layer.
        query: [1, H, N, D]; with a chunk, of its tokens.
        key: [1, K, N, D]; each key head serves H / K query heads.
        value: [1, K, N, D].
        attention_mask: must be none; the rows define what is visible.
        scaling: factor on the scores, by default D^-1/2.
        softcap: c of c · tanh(scores / c).
        sliding_window: number of tokens, itself included, that a token sees.
        row_layout: the rows; their lengths add up to N, over the chunks of all ranks.

    Returns:
        [1, N, H, D], and none in place of the attention weights.

    Raises:
        ValueError: called without rows, as for a padded batch or a decoding step.
    """
    if row_layout is None or attention_mask is not None:
        raise ValueError("per-row attention needs row_layout and no attention_mask")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    options = (scale, softcap, sliding_window)
    chunk = row_layout.chunk
    if chunk is None:
        return _attend(query, key, value, row_layout, options), None
    heads = query.shape[1]
    query, key, value = chunk.to_heads(query, key, value)
    return chunk.to_tokens(_attend(query, key, value, row_layout, options), heads), None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, row_layout: RowLayout, options: Options
) -> Tensor:
    """Compute attention [1, N, H, D] of whole rows: in one call where there is a kernel for it."""
    scale, softcap, window = options
    if softcap is None and not unavailable_reason(query.device, query.dtype, query.shape[-1]):
        q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
        lengths, follows = row_layout.lengths, row_layout.follows
        return varlen_attention(q, k, v, lengths, follows, scale, window).unsqueeze(0)
    return _attend_by_group(query, key, value, row_layout, options).unsqueeze(0)


def _attend_by_group(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_layout: RowLayout,
    options: Options,
) -> Tensor:
    """Compute attention [N, H, D] of one group of rows after another."""
    scale, softcap, window = options
    repeats = query.shape[1] // key.shape[1]
    sizes = [sum(group.lengths) for group in row_layout.groups]
    queries, keys, values = (
        tensor.squeeze(0).transpose(0, 1).split(sizes) for tensor in (query, key, value)
    )  # of each group: [n, H, D]
    outputs = []
    for number, group in enumerate(row_layout.groups):
        start = sizes[group.follows] if group.follows >= 0 else 0
        products = softcap or _products_are_faster(query, start + max(group.lengths))
        attend, step = (matmul_attention, STEP) if products else (sdpa_attention, 1)
        q = _by_head(queries[number], group.lengths, step)
        k, v = (_seen(parts, number, group, step) for parts in (keys, values))
        if repeats > 1:
            k, v = (tensor.repeat_interleave(repeats, dim=1) for tensor in (k, v))
        found = attend(q, k, v, start, scale, softcap, window)
        outputs.append(_flat(found, group.lengths))
    return torch.cat(outputs)


def _seen(parts: tuple[Tensor, ...], number: int, group: Group, step: int) -> Tensor:
    """Keys or values [R, H, K, D] of a group's rows, after those of the row they continue."""
    own = _by_head(parts[number], group.lengths, step)
    if group.follows < 0:
        return own
    rows, heads, length, width = own.shape
    before = parts[group.follows].transpose(0, 1).expand(rows, -1, -1, -1)
    filled = before.shape[2] + length
    behind = own.new_zeros(1).expand(rows, heads, _round_up(filled, step) - filled, width)
    return torch.cat([before, own, behind], dim=2)


def _round_up(length: int, step: int) -> int:
    return -(-length // step) * step


def _products_are_faster(tensor: Tensor, length: int) -> bool:
    on_cpu = tensor.device.type == "cpu"
    return on_cpu and tensor.dtype == torch.bfloat16 and length < PRODUCT_LENGTH


def _by_head(tensor: Tensor, group: tuple[int, ...], step: int) -> Tensor:
    """Reshape a group's [n, H, D] to [R, H, T, D], padded on the right to a multiple of a step."""
    size = _round_up(max(group), step)
    if min(group) == size:
        return tensor.view(len(group), size, *tensor.shape[1:]).transpose(1, 2)
    first, *others = tensor.split(group)
    first = F.pad(first, (0, 0, 0, 0, 0, size - len(first)))
    rows = pad_sequence([first, *others], batch_first=True) if others else first[None]
    return rows.transpose(1, 2)


def _flat(tensor: Tensor, group: tuple[int, ...]) -> Tensor:
    """Reshape [R, H, T, D] to [n, H, D], without the padding."""
    rows = tensor.transpose(1, 2)
    if min(group) == rows.shape[1]:
        return rows.flatten(0, 1)
    return torch.cat([row[:length] for row, length in zip(rows.unbind(), group, strict=True)])


AttentionInterface.register(ATTENTION, per_row_attention)


def require_attention(cfg: ModelConfig, ctx: RunContext, *, flat: bool) -> None:
    """Refuse an attention that the model, the device or the compute type does not support.

    Raises:
        ModelError: names which of them.
    """
    asked, reason = cfg.attention, ""
    if asked not in ("auto", *PADDED) and not flat:
        reason = f"keeps the rows of decoders apart, and {cfg.path} is an encoder"
    elif asked not in ("auto", "per_row", *PADDED) and ctx.device.type != "cuda":
        reason = f"is trained with on CUDA alone, and this runs on {ctx.device.type}"
    elif asked in FLASH_PACKAGES and ctx.compute == torch.float32:
        reason = "has no kernels for fp32, which train.precision=fp32 asks for"
    if reason:
        raise ModelError(f"model.attention: got {asked}, which {reason}. Try model.attention=auto")
    if ctx.ranks.context.world_size > 1 and not flat:
        raise ModelError(
            f"launch.context_parallel: got {ctx.ranks.context.world_size}; {cfg.path} is an "
            "encoder, whose tokens see those after them, and only decoders are divided. "
            "Try launch.context_parallel=1"
        )


def padded_attention(model: Any) -> str:
    """Return the attention for padded rows: torch's fused one where the model supports it."""
    return "sdpa" if model._supports_sdpa else "eager"


def describe_attention(model: Any, device: torch.device, compute: torch.dtype) -> str:
    """Name the attention; on CUDA also say whether `per_row` takes all rows in one call."""
    config = model.config.get_text_config()
    name: str = model.config._attn_implementation
    if name != ATTENTION or device.type != "cuda":
        return name.removeprefix("rlhf_")
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    reason = unavailable_reason(device, compute, width)
    calls = f"a call for each row: varlen {reason}" if reason else "all rows in one call"
    return f"per_row ({calls})"

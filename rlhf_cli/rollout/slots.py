"""A cache of slots, one row in each, and the attention that reads and writes it.

Registered with transformers under `SLOTS`, like the flat rows of training: the model builds no mask
and keeps no cache of its own, so neither checkpointing nor the training mode can drop it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface

from rlhf_cli.models.attention import RowLayout, per_row_attention

SLOTS = "rlhf_slots"

STEP = 32
"""Columns come and go in multiples of this: a new width moves the cache, and oneDNN compiles."""


class SlotCache:
    """Keys and values of each layer: a row in each slot, column = position.

    The memory is taken once, for the longest rows that can come. As many columns of it are laid out
    as live rows need, one slot after another without gaps: products on a part of each slot would
    copy it first.

    Args:
        slots: S, how many rows there is room for.
        length: the longest row, prompt and response together.
        few: let the number of columns double instead, so that it has few values.
    """

    def __init__(self, slots: int, length: int, *, few: bool = False) -> None:
        self.slots, self.width = slots, STEP
        self._length, self._few = _round_up(length), few
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, key: Tensor, value: Tensor, where: Where) -> tuple[Tensor, Tensor]:
        """Put a layer's keys and values [1, K, N, D] in their places; returns all [S, K, T, D]."""
        if layer not in self._layers:
            self._layers[layer] = self._room(key), self._room(value)
        keys, values = (self._view(room) for room in self._layers[layer])
        for store, given in ((keys, key), (values, value)):
            # index_copy_ on flat [S K T, D] is twenty times as fast as store[slots, :, positions]
            flat = given[0].transpose(0, 1)
            flat = flat if where.source is None else flat.index_select(0, where.source)
            index = where.columns(given.shape[1], self.width)
            store.view(-1, store.shape[-1]).index_copy_(0, index, flat.flatten(0, 1))
        return keys, values

    def copy(self, source: int, target: int, length: int) -> None:
        """Give a slot the first positions of another."""
        for store in self._stores():
            store[target, :, :length] = store[source, :, :length]

    def fit(self, length: int) -> None:
        """Lay out as many columns as rows of this length need."""
        before, self.width = self.width, self._columns(length)
        if self.width == before:
            return
        kept = min(before, self.width)
        for room in (room for layer in self._layers.values() for room in layer):
            held = self._view(room, before)[:, :, :kept].clone()
            self._view(room)[:, :, :kept] = held

    def _columns(self, length: int) -> int:
        if not self._few:
            return _round_up(length)
        return min(max(STEP, 1 << (length - 1).bit_length()), self._length)

    def _stores(self) -> list[Tensor]:
        return [self._view(room) for layer in self._layers.values() for room in layer]

    def _view(self, room: Tensor, width: int | None = None) -> Tensor:
        """[S, K, T, D] at the start of the memory [K, S length, D] of a layer."""
        heads, _, size = room.shape
        width = width or self.width
        return room.view(-1)[: self.slots * heads * width * size].view(-1, heads, width, size)

    def _room(self, like: Tensor) -> Tensor:
        # zeros: what lies behind a row's end has no weight, but 0 times NaN would be NaN
        return like.new_zeros(like.shape[1], self.slots * self._length, like.shape[3])


def _round_up(length: int) -> int:
    return -(-length // STEP) * STEP


class Where:
    """Where the tokens of a flat pass go.

    Args:
        slots: [M] of each write.
        positions: [M] of each write.
        source: [M] tokens written, in order of the writes; none where that is all of them in order.
    """

    def __init__(self, slots: Tensor, positions: Tensor, source: Tensor | None) -> None:
        self.slots, self.positions, self.source = slots, positions, source
        self._columns: dict[int, Tensor] = {}

    def columns(self, heads: int, width: int) -> Tensor:
        """[M K]: rows of the flat cache [S K T, D], T wide."""
        if heads not in self._columns:
            head = torch.arange(heads, device=self.slots.device)
            first = (self.slots[:, None] * heads + head) * width
            self._columns[heads] = (first + self.positions[:, None]).flatten()
        return self._columns[heads]


class Pass:
    """One forward pass: a token of each live row, then new prompts, in one flat sequence.

    Live row r is in slot r.

    Args:
        cache: of all layers.
        ends: [R] positions of the live rows' tokens, the last of each row.
        prompts: lengths of the new prompts.
        where: the slots and positions of all tokens; a prompt may go to several slots.
    """

    def __init__(
        self, cache: SlotCache, ends: Tensor, prompts: Sequence[int], where: Where
    ) -> None:
        self.cache, self.ends, self.where = cache, ends, where
        self.prompts = RowLayout(tuple(prompts))
        self._masks: dict[int | None, Tensor] = {}

    @cached_property
    def rows(self) -> int:
        """How many rows are live."""
        return len(self.ends)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[R, 1, 1, T]: 0 where a row's last token sees a position, else -inf."""
        if window not in self._masks:
            position = torch.arange(self.cache.width, device=self.ends.device)
            distance = self.ends[:, None] - position
            hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
            mask = torch.zeros(hidden.shape, dtype=dtype, device=self.ends.device)
            self._masks[window] = mask.masked_fill_(hidden, -torch.inf)[:, None, None]
        return self._masks[window]


def slot_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    slot_pass: Pass | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of live rows to their slots, and of new prompts to themselves.

    Args:
        module: the attention layer that calls; its `layer_idx` names its part of the cache.
        query: [1, H, N, D].
        key: [1, K, N, D]; each key head serves H / K query heads.
        value: [1, K, N, D].
        attention_mask: must be none; the pass says what is seen.
        scaling: factor on the scores, by default D^-1/2.
        softcap: c of c · tanh(scores / c).
        sliding_window: how many tokens, itself included, a token sees.
        slot_pass: what the N tokens are.

    Returns:
        [1, N, H, D], and none for the weights.

    Raises:
        ValueError: called without a pass.
    """
    if slot_pass is None or attention_mask is not None:
        raise ValueError("slot attention needs slot_pass and no attention_mask")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    keys, values = slot_pass.cache.write(module.layer_idx, key, value, slot_pass.where)
    rows = slot_pass.rows
    parts = []
    if rows:
        mask = slot_pass.mask(sliding_window, query.dtype)
        live = query[0, :, :rows]
        parts.append(_last_token(live, keys[:rows], values[:rows], mask, scale, softcap))
    if slot_pass.prompts.lengths:
        query, key, value = (tensor[:, :, rows:] for tensor in (query, key, value))
        layout = slot_pass.prompts
        parts.append(
            per_row_attention(
                module, query, key, value, None, scale, softcap, sliding_window, layout
            )[0]
        )
    return torch.cat(parts, dim=1), None


def _last_token(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """[1, R, H, D]: one query a row, [H, R, D], to the keys and values [R, K, T, D].

    Heads that share keys stand in one product with them, so keys are never repeated. On CPUs plain
    products are up to four times as fast as SDPA, which is made for many queries a row.
    """
    grouped = query.transpose(0, 1).unflatten(1, (keys.shape[1], -1))  # [R, K, H / K, D]
    if softcap is None and query.device.type != "cpu":
        average = F.scaled_dot_product_attention(grouped, keys, values, mask, scale=scale)
    else:
        scores = grouped @ keys.transpose(2, 3) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        average = (scores + mask).softmax(-1) @ values
    return average.flatten(1, 2).unsqueeze(0)


AttentionInterface.register(SLOTS, slot_attention)

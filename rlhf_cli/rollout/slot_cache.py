"""KV cache with one response per slot, and the attention that reads and writes it.

The attention is registered with transformers as `SLOT_ATTENTION`, like the flat rows of training:
the model builds no mask and keeps no cache of its own, so neither checkpointing nor the training
mode can drop it.
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
from rlhf_cli.models.wrapper import HiddenStateHook

SLOT_ATTENTION = "rlhf_slots"
"""Name of the attention in transformers' registry."""

WIDTH_STEP = 32
"""The cache's width is a multiple of this: each new width moves the cache, and oneDNN compiles."""


class SlotCache:
    """Keys and values of each layer, one response per slot; a column is a position.

    Memory is allocated once, for the longest responses possible. Only as many columns as active
    responses need are in use, slot after slot without gaps: a product with part of each slot would
    copy it first.

    Args:
        slots: S, number of responses that fit.
        max_length: tokens of the longest prompt and response together.
        powers_of_two: let the width double instead of growing in steps, so that it has few values.
    """

    def __init__(self, slots: int, max_length: int, *, powers_of_two: bool = False) -> None:
        self.slots, self.width = slots, WIDTH_STEP
        self._max_width, self._powers_of_two = _round_up(max_length), powers_of_two
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def write(
        self, layer: int, key: Tensor, value: Tensor, writes: CacheWrites
    ) -> tuple[Tensor, Tensor]:
        """Write a layer's keys and values [1, K, N, D]; return those of all slots [S, K, T, D]."""
        if layer not in self._layers:
            self._layers[layer] = self._allocate(key), self._allocate(value)
        keys, values = (self._view(memory) for memory in self._layers[layer])
        for store, given in ((keys, key), (values, value)):
            # index_copy_ on flat [S K T, D] is twenty times as fast as store[slots, :, positions]
            flat = given[0].transpose(0, 1)
            flat = flat if writes.source is None else flat.index_select(0, writes.source)
            index = writes.cache_rows(given.shape[1], self.width)
            store.view(-1, store.shape[-1]).index_copy_(0, index, flat.flatten(0, 1))
        return keys, values

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first positions of a slot to another."""
        for store in self._stores():
            store[target, :, :length] = store[source, :, :length]

    def resize(self, length: int) -> None:
        """Set the width to what responses of this length need."""
        before, self.width = self.width, self._width_for(length)
        if self.width == before:
            return
        kept = min(before, self.width)
        for memory in (memory for layer in self._layers.values() for memory in layer):
            values = self._view(memory, before)[:, :, :kept].clone()
            self._view(memory)[:, :, :kept] = values

    def _width_for(self, length: int) -> int:
        if not self._powers_of_two:
            return _round_up(length)
        return min(max(WIDTH_STEP, 1 << (length - 1).bit_length()), self._max_width)

    def _stores(self) -> list[Tensor]:
        return [self._view(memory) for layer in self._layers.values() for memory in layer]

    def _view(self, memory: Tensor, width: int | None = None) -> Tensor:
        """[S, K, T, D] at the start of a layer's memory [K, S max_width, D]."""
        heads, _, size = memory.shape
        width = width or self.width
        return memory.view(-1)[: self.slots * heads * width * size].view(-1, heads, width, size)

    def _allocate(self, like: Tensor) -> Tensor:
        # zeros: values after a response's end have no weight, but 0 times NaN would be NaN
        return like.new_zeros(like.shape[1], self.slots * self._max_width, like.shape[3])


def _round_up(length: int) -> int:
    return -(-length // WIDTH_STEP) * WIDTH_STEP


class CacheWrites:
    """Slots and positions to which the tokens of a flat pass are written.

    Args:
        slots: [M], slot of each write.
        positions: [M], position of each write.
        source: [M], index of the token of each write; None where write m writes token m.
    """

    def __init__(self, slots: Tensor, positions: Tensor, source: Tensor | None) -> None:
        self.slots, self.positions, self.source = slots, positions, source
        self._cache_rows: dict[int, Tensor] = {}

    def cache_rows(self, heads: int, width: int) -> Tensor:
        """[M K]: row indices of the flat cache [S K T, D], of width T."""
        if heads not in self._cache_rows:
            head = torch.arange(heads, device=self.slots.device)
            first = (self.slots[:, None] * heads + head) * width
            self._cache_rows[heads] = (first + self.positions[:, None]).flatten()
        return self._cache_rows[heads]


class DecodeStep:
    """One forward pass: a token of each active response, then new prompts, as a flat sequence.

    Active response r is in slot r.

    Args:
        cache: of all layers.
        positions: [R], positions of the active responses' last tokens.
        prompt_lengths: tokens of each new prompt.
        writes: slots and positions of all tokens; a prompt may go to several slots.
    """

    def __init__(
        self,
        cache: SlotCache,
        positions: Tensor,
        prompt_lengths: Sequence[int],
        writes: CacheWrites,
    ) -> None:
        self.cache, self.positions, self.writes = cache, positions, writes
        self.prompts = RowLayout(tuple(prompt_lengths))
        self._masks: dict[int | None, Tensor] = {}

    @cached_property
    def active(self) -> int:
        """R, number of active responses."""
        return len(self.positions)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[R, 1, 1, T]: 0 where a response's last token attends to a position, else -inf."""
        if window not in self._masks:
            position = torch.arange(self.cache.width, device=self.positions.device)
            distance = self.positions[:, None] - position
            hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
            mask = torch.zeros(hidden.shape, dtype=dtype, device=self.positions.device)
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
    decode_step: DecodeStep | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of active responses to their slots, and of new prompts to themselves.

    Args:
        module: the calling attention layer; its `layer_idx` is its index in the cache.
        query: [1, H, N, D].
        key: [1, K, N, D]; each key head serves H / K query heads.
        value: [1, K, N, D].
        attention_mask: must be None; the step has the masks.
        scaling: factor of the scores; by default D^-1/2.
        softcap: c of c · tanh(scores / c).
        sliding_window: number of tokens, itself included, that a token attends to.
        decode_step: describes the N tokens.

    Returns:
        [1, N, H, D], and None in place of the attention weights.

    Raises:
        ValueError: called without a step or with a mask.
    """
    if decode_step is None or attention_mask is not None:
        raise ValueError("slot attention needs decode_step and no attention_mask")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    keys, values = decode_step.cache.write(module.layer_idx, key, value, decode_step.writes)
    active = decode_step.active
    parts = []
    if active:
        mask = decode_step.mask(sliding_window, query.dtype)
        last = query[0, :, :active]
        parts.append(
            _last_token_attention(last, keys[:active], values[:active], mask, scale, softcap)
        )
    if decode_step.prompts.lengths:
        query, key, value = (tensor[:, :, active:] for tensor in (query, key, value))
        layout = decode_step.prompts
        parts.append(
            per_row_attention(
                module, query, key, value, None, scale, softcap, sliding_window, layout
            )[0]
        )
    return torch.cat(parts, dim=1), None


def _last_token_attention(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """[1, R, H, D]: one query per response, [H, R, D], to the keys and values [R, K, T, D].

    Heads that share keys are one product with them, so keys are never repeated. On CPUs plain
    products are up to four times as fast as SDPA, which is made for many queries per row.
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


class DecodeModel:
    """A model that reads flat tokens of responses in slots and returns hidden states.

    Attributes:
        device: of the model.
        cache: keys and values of the responses.
    """

    def __init__(self, model: Any, cache: SlotCache) -> None:
        self.device, self.cache = model.device, cache
        self._model = model
        self._hook = HiddenStateHook(model.get_output_embeddings(), keep=slice(0))

    def __call__(self, tokens: Tensor, positions: Tensor, step: DecodeStep) -> Tensor:
        """[N, d]: input of the output layer.

        Args:
            tokens: [N] ids.
            positions: [N], position of each token in its response.
            step: where the tokens are written, and what they attend to.
        """
        with self._hook.open():
            self._model(
                input_ids=tokens[None],
                position_ids=positions[None],
                use_cache=False,
                decode_step=step,
            )
            return self._hook.hidden[0]


AttentionInterface.register(SLOT_ATTENTION, slot_attention)

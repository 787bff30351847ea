"""Continuous batching: responses that end leave their slot, waiting ones take it.

The `Scheduler` says which response is in which slot of the KV cache; `decode` runs the model, one
token for each active response per step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.kernels.eager import compute_logits
from rlhf_cli.kernels.lm_head import Support
from rlhf_cli.models.attention import ATTENTION, padded_attention
from rlhf_cli.models.torch_compile import uncompiled
from rlhf_cli.models.wrapper import read_head, without_dropout
from rlhf_cli.rollout.cuda_graphs import Recorder, StaticDecodeStep
from rlhf_cli.rollout.response import Response
from rlhf_cli.rollout.slot_cache import (
    SLOT_ATTENTION,
    CacheWrites,
    DecodeModel,
    DecodeStep,
    SlotCache,
)

PREFILL_TOKENS = 8192
"""No further prompt joins a forward pass that already has this many prompt tokens."""

ChooseTokens = Callable[[Tensor, Sequence[Response]], list[int]]
"""Returns the next token of each active response from logits in fp32, which it may overwrite:
[R, V], or fewer columns where the last ids have no token."""


@dataclass
class ScheduleStep:
    """What has to happen to the cache before the next tokens are sampled.

    Attributes:
        copies: (source slot, target slot, length), in this order.
        prefills: prompt prefixes that no slot has yet, and the slots of each.
    """

    copies: list[tuple[int, int, int]] = field(default_factory=list)
    prefills: list[tuple[Sequence[int], list[int]]] = field(default_factory=list)


class Scheduler:
    """Assigns responses to slots; active ones are in the first slots, without gaps.

    Args:
        responses: in the order in which they take slots. Those to one prompt follow one another:
            while one of them waits, the prompt's prefix is in some slot.
        slots: number of responses active at once.

    Attributes:
        active: active[s] is in slot s.
    """

    def __init__(self, responses: Sequence[Response], slots: int) -> None:
        self.active: list[Response] = []
        self._waiting = list(responses)[::-1]
        self._slots = slots
        self._cached_prompt: dict[int, int] = {}  # slot -> prompt whose prefix is in it

    def step(self, ended: Sequence[int] = ()) -> ScheduleStep:
        """Fill the slots of ended responses with waiting ones, else with the last active ones.

        Args:
            ended: slots, in ascending order.
        """
        step = ScheduleStep()
        new_prompts: dict[int, list[int]] = {}  # prompt -> its slots in step.prefills
        free = list(ended)
        while self._waiting and (free or len(self.active) < self._slots):
            if sum(len(prefix) for prefix, _ in step.prefills) >= PREFILL_TOKENS:
                break
            slot = free.pop(0) if free else len(self.active)
            self._admit(slot, self._waiting.pop(), step, new_prompts)
        while free:
            last = len(self.active) - 1
            if free[-1] == last:
                free.pop()
            else:
                self._move(last, free.pop(0), step)
            self.active.pop()
        return step

    def _admit(
        self, slot: int, response: Response, step: ScheduleStep, new_prompts: dict[int, list[int]]
    ) -> None:
        self.active[slot : slot + 1] = [response]
        prompt = response.prompt_index
        if prompt in new_prompts:
            new_prompts[prompt].append(slot)
        elif self._cached_prompt.get(slot) != prompt:
            source = next(
                (s for s, cached in self._cached_prompt.items() if cached == prompt), None
            )
            if source is not None:
                step.copies.append((source, slot, len(response.prefill_ids)))
            elif response.prefill_ids:
                new_prompts[prompt] = [slot]
                step.prefills.append((response.prefill_ids, new_prompts[prompt]))
        self._cached_prompt[slot] = prompt

    def _move(self, source: int, target: int, step: ScheduleStep) -> None:
        response = self.active[source]
        self.active[target] = response
        self._cached_prompt[target] = response.prompt_index
        step.copies.append((source, target, response.last_position))


def attention_for_padding(model: Any) -> str:
    """Name of the attention implementation that a model has for padded rows."""
    own: str = model.config._attn_implementation
    return padded_attention(model) if own == ATTENTION else own


@contextmanager
def generation_mode(model: Any, attention: str) -> Iterator[None]:
    """Prepare a model for generation, and restore it afterwards.

    Not eval mode, see `without_dropout`. Not inference mode: what a module caches would be a tensor
    that training cannot use.

    Args:
        model: gradients, dropout, activation checkpointing and compilation are switched off.
        attention: attention implementation to use.
    """
    before = model.config._attn_implementation
    checkpointed = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    model.set_attn_implementation(attention)
    for module in checkpointed:
        module.gradient_checkpointing = False
    try:
        with torch.no_grad(), without_dropout(model), uncompiled(model):
            yield
    finally:
        model.set_attn_implementation(before)
        for module in checkpointed:
            module.gradient_checkpointing = True


@dataclass(frozen=True)
class DecodeOptions:
    """Sizes and optional parts of the decoding loop.

    Attributes:
        batch_size: responses decoded at once.
        max_length: tokens of the longest prompt and response together.
        recorder: records steps without new prompts for replay; None runs them.
        support: ids that can be sampled; None where all can.
    """

    batch_size: int
    max_length: int
    recorder: Recorder | None = None
    support: Support | None = None


def decode(
    model: Any,
    responses: Sequence[Response],
    options: DecodeOptions,
    choose: ChooseTokens,
    is_finished: Callable[[Response], bool],
) -> None:
    """Generate all responses, appending to their `token_ids`.

    Args:
        model: a causal language model that takes flat rows.
        responses: in the order in which they take slots.
        options: sizes and optional parts.
        choose: chooses the next tokens.
        is_finished: whether a response is complete after its last token.
    """
    slots = min(options.batch_size, len(responses))
    scheduler, recorder, support = Scheduler(responses, slots), options.recorder, options.support
    if recorder is None:
        cache = SlotCache(slots, options.max_length)
    else:
        cache = SlotCache(slots + 1, options.max_length, powers_of_two=True)
    forward = DecodeModel(model, cache)
    static = None if recorder is None else StaticDecodeStep(forward, recorder)
    with generation_mode(model, SLOT_ATTENTION):
        head = read_head(model) if support is None else support.sliced(read_head(model))
        step = scheduler.step()
        while active := scheduler.active:
            cache.resize(1 + max(response.last_position for response in active))
            for copy in step.copies:
                cache.copy(*copy)
            if static is not None and not step.prefills:
                hidden = static(active)
            else:
                hidden = _forward(forward, active, step)
            found = compute_logits(hidden, head)
            tokens = choose(found if support is None else support.mask(found), active)
            for response, token in zip(active, tokens, strict=True):
                response.token_ids.append(token)
            step = scheduler.step([slot for slot, one in enumerate(active) if is_finished(one)])


def _forward(forward: DecodeModel, active: Sequence[Response], step: ScheduleStep) -> Tensor:
    """[R, d]: hidden states of the active responses' last tokens.

    New prompts, without their last tokens, are appended to them as one flat sequence.
    """
    last = [response.last_position for response in active]
    prefixes = [prefix for prefix, _ in step.prefills]
    tokens = [one.last_token for one in active] + [token for ids in prefixes for token in ids]
    positions = last + [position for prefix in prefixes for position in range(len(prefix))]
    sent = _to_device(forward.device, tokens, positions, last, *_cache_writes(last, step))
    tokens_, positions_, last_, slots, columns, source = sent
    in_order = all(len(targets) == 1 for _, targets in step.prefills)
    writes = CacheWrites(slots, columns, None if in_order else source)
    decode_step = DecodeStep(forward.cache, last_, [len(prefix) for prefix in prefixes], writes)
    return forward(tokens_, positions_, decode_step)[: len(active)]


def _to_device(device: torch.device, *columns: Sequence[int]) -> list[Tensor]:
    """The numbers as int64 tensors on the device, in one copy that the host does not wait for."""
    flat = torch.tensor([number for column in columns for number in column])
    return list(flat.to(device, non_blocking=True).split([len(column) for column in columns]))


def _cache_writes(
    last: Sequence[int], step: ScheduleStep
) -> tuple[list[int], list[int], list[int]]:
    """Slot and position of each write to the cache, and the index of the token that is written."""
    slots, positions, source = list(range(len(last))), list(last), list(range(len(last)))
    start = len(last)
    for prefix, targets in step.prefills:
        for slot in targets:
            slots += [slot] * len(prefix)
            positions += range(len(prefix))
            source += range(start, start + len(prefix))
        start += len(prefix)
    return slots, positions, source

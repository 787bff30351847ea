"""The decoding loop: each pass gives the logits of all live rows' next tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.kernels.eager import logits
from rlhf_cli.kernels.support import Support
from rlhf_cli.models.torch_compile import uncompiled
from rlhf_cli.models.wrapper import read_head, without_dropout
from rlhf_cli.rollout.forward import Forward
from rlhf_cli.rollout.graphs import Record, StaticStep
from rlhf_cli.rollout.schedule import Row, Schedule, Turn
from rlhf_cli.rollout.slots import SLOTS, Pass, SlotCache, Where

Choose = Callable[[Tensor, Sequence[Row]], list[int]]
"""Next tokens of the live rows, from their logits in fp32, which it may use up: [R, V], or fewer
columns where the last ids have no token."""


@contextmanager
def writing(model: Any, attention: str) -> Iterator[None]:
    """Let a model write, whatever it does otherwise, and leave it as it was.

    Not in eval mode, see `without_dropout`. Not in inference mode: what a module keeps for later
    would be a tensor that training cannot use.
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


def decode(
    model: Any,
    rows: Sequence[Row],
    slots: int,
    length: int,
    choose: Choose,
    ended: Callable[[Row], bool],
    record: Record | None = None,
    support: Support | None = None,
) -> None:
    """Write all rows.

    Args:
        model: a causal language model that takes flat rows.
        rows: in the order in which they take slots; their `written` grows.
        slots: rows decoded at once.
        length: the longest row, prompt and response together.
        choose: the next tokens.
        ended: whether a row is complete after its last token.
        record: lets passes without new prompts be recorded and replayed.
        support: the ids that can be drawn; none where all can.
    """
    slots = min(slots, len(rows))
    schedule = Schedule(rows, slots)
    cache = SlotCache(slots, length) if record is None else SlotCache(slots + 1, length, few=True)
    forward = Forward(model, cache)
    static = None if record is None else StaticStep(forward, record)
    with writing(model, SLOTS):
        head = read_head(model) if support is None else support.sliced(read_head(model))
        turn = schedule.turn()
        while schedule.live:
            cache.fit(1 + max(row.position for row in schedule.live))
            for copy in turn.copies:
                cache.copy(*copy)
            if static is not None and not turn.prompts:
                hidden = static(schedule.live)
            else:
                hidden = _pass(forward, schedule.live, turn)
            found = logits(hidden, head)
            tokens = choose(found if support is None else support.mask(found), schedule.live)
            for row, token in zip(schedule.live, tokens, strict=True):
                row.written.append(token)
            turn = schedule.turn([slot for slot, row in enumerate(schedule.live) if ended(row)])


def _pass(forward: Forward, live: Sequence[Row], turn: Turn) -> Tensor:
    """[R, d]: hidden states of the live rows' last tokens.

    With them go new prompts but their last tokens, as one flat sequence.
    """
    ends = [row.position for row in live]
    prefixes = [prefix for prefix, _ in turn.prompts]
    tokens = [row.last for row in live] + [token for prefix in prefixes for token in prefix]
    positions = ends + [position for prefix in prefixes for position in range(len(prefix))]
    writes = _writes(ends, turn)
    sent = _send(forward.device, tokens, positions, ends, *writes)
    own_tokens, own_positions, own_ends, slots, columns, source = sent
    once = all(len(targets) == 1 for _, targets in turn.prompts)
    where = Where(slots, columns, None if once else source)
    step = Pass(forward.cache, own_ends, [len(prefix) for prefix in prefixes], where)
    return forward(own_tokens, own_positions, step)[: len(live)]


def _send(device: torch.device, *columns: Sequence[int]) -> list[Tensor]:
    """The numbers as int64 tensors on the device, in one copy that the host does not wait for."""
    flat = torch.tensor([number for column in columns for number in column])
    return list(flat.to(device, non_blocking=True).split([len(column) for column in columns]))


def _writes(ends: Sequence[int], turn: Turn) -> tuple[list[int], list[int], list[int]]:
    """Slot and position of each write to the cache, and the token of the pass that is written."""
    slots, positions, source = list(range(len(ends))), list(ends), list(range(len(ends)))
    start = len(ends)
    for prefix, targets in turn.prompts:
        for slot in targets:
            slots += [slot] * len(prefix)
            positions += range(len(prefix))
            source += range(start, start + len(prefix))
        start += len(prefix)
    return slots, positions, source

"""Prompts in, tokens out. Log-probs come from the primitive, unless the draws' own are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rlhf_cli.context import say
from rlhf_cli.errors import ConfigError, DataError
from rlhf_cli.kernels.support import Support
from rlhf_cli.models.load import context_length
from rlhf_cli.models.vocabulary import find_support, require_embedded_ids
from rlhf_cli.models.wrapper import ModelWrapper, read_head
from rlhf_cli.rollout.batched import generate_batched
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.decode import decode
from rlhf_cli.rollout.draws import Draws
from rlhf_cli.rollout.ends import Ends
from rlhf_cli.rollout.graphs import capture, require_cuda
from rlhf_cli.rollout.probe import fits_slots, require_graphs, require_slots
from rlhf_cli.rollout.schedule import Row

_SUPPORT: WeakKeyDictionary[Any, Support | None] = WeakKeyDictionary()

SLOTS_AT_ONCE = 64
"""Rows decoded at once, by default: on two cores, more are hardly faster."""


@dataclass(frozen=True)
class Rollout:
    """Responses to prompts: all samples of the first prompt, then of the second, and so on.

    Attributes:
        tokens: of each response, its end token included where there is one.
        finished: whether it ended by itself, not at the length limit.
        logprobs: nats, of each token of each response, as it was drawn; empty where not asked for.
    """

    tokens: list[list[int]]
    finished: list[bool]
    logprobs: list[list[float]]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    samples: int = 1,
    slots: int = SLOTS_AT_ONCE,
    numbers: Sequence[int] | None = None,
    streamer: Any | None = None,
    logprobs: bool = False,
) -> Rollout:
    """Draw responses to prompts.

    A response depends on its prompt, the seed, and its own numbers alone; on other prompts, slots
    and order only by the rounding of logits.

    Args:
        model: a policy, with the adapters that are active now, or a transformers causal language
            model. Left as it was: mode, attention, gradients.
        tokenizer: says which tokens end a response and finds stop strings. Ids that it has no
            token for are never drawn.
        prompts: token ids, one at least in each.
        sampling: how tokens are drawn.
        samples: responses to each prompt.
        slots: rows decoded at once; memory grows with it.
        numbers: of each prompt, >= 0, for its seed; by default its place. Where prompts come in
            portions, or again, other numbers give other draws.
        streamer: a transformers streamer, for one response.
        logprobs: keep those of the draws, in fp32: under the whole distribution at the temperature,
            before `top_k`, `top_p`, `min_p` and `min_new_tokens` take tokens from it.

    Raises:
        ConfigError: the model has too few positions for prompt and response, or does not decode in
            slots, as kept log-probs and CUDA graphs need it.
        DataError: a prompt has no tokens, or one that the model does not embed.
        NonFinite: the logits are not finite.
        ValueError: log-probs are asked for at temperature 0, which has no distribution.
    """
    if logprobs and sampling.temperature == 0:
        raise ValueError("logprobs: asked for at temperature 0; need a temperature > 0")
    inner = model.model if isinstance(model, ModelWrapper) else model
    if not prompts:
        return Rollout([], [], [])
    named = range(len(prompts)) if numbers is None else numbers
    _require_tokens(prompts)
    require_embedded_ids(prompts, inner, lambda place: f"prompts: number {named[place]}")
    _require_room(inner, prompts, sampling)
    ends = Ends(inner, tokenizer, sampling)
    rows = [
        Row(place * samples + sample, place, prompt)
        for place, prompt in enumerate(prompts)
        for sample in range(samples)
    ]
    seeds = [(sampling.seed, number, sample) for number in named for sample in range(samples)]
    require_cuda(sampling, inner.device)
    if logprobs:
        require_slots(inner, "rollout_logprobs", "reuse", "recompute")
    if sampling.cuda_graphs:
        require_graphs(inner, capture)
    support = _support(inner, tokenizer)
    if fits_slots(inner):
        draws = Draws(sampling, ends.tokens, seeds, keep=logprobs)
        _decode(inner, rows, draws, sampling, ends, slots, streamer, support)
    else:
        generate_batched(inner, tokenizer, rows, seeds, sampling, ends, slots, streamer, support)
    finished = [ends.reached(row.written) for row in rows]
    return Rollout([row.written for row in rows], finished, [row.logprobs for row in rows])


def _decode(
    model: Any,
    rows: Sequence[Row],
    draws: Draws,
    sampling: SamplingConfig,
    ends: Ends,
    slots: int,
    streamer: Any | None,
    support: Support | None,
) -> None:
    def choose(logits: Tensor, live: Sequence[Row]) -> list[int]:
        tokens = draws(logits, live)
        if streamer is not None:
            streamer.put(torch.tensor(tokens))
        return tokens

    def ended(row: Row) -> bool:
        return len(row.written) == sampling.max_new_tokens or ends.reached(row.written)

    # long prompts first: rows of like length are read together, and the last ones are cheap
    order = sorted(rows, key=lambda row: -len(row.before))
    if streamer is not None:
        streamer.put(torch.tensor(rows[0].before))
    longest = len(order[0].before) + sampling.max_new_tokens
    record = capture if sampling.cuda_graphs else None
    decode(model, order, slots, longest, choose, ended, record, support)
    if streamer is not None:
        streamer.end()


def _support(model: Any, tokenizer: Any) -> Support | None:
    """The ids that can be drawn; said in one line where some cannot, the first time."""
    if model not in _SUPPORT:
        rows = len(read_head(model).weight)
        found = _SUPPORT[model] = find_support(tokenizer, rows)
        if found is not None:
            say(
                f"rollout: {len(found.excluded)} of {rows} ids have no token in the tokenizer and "
                "are never drawn"
            )
    return _SUPPORT[model]


def _require_tokens(prompts: Sequence[Sequence[int]]) -> None:
    for place, prompt in enumerate(prompts):
        if not prompt:
            raise DataError(f"prompts: number {place} has no tokens; need one at least")


def _require_room(model: Any, prompts: Sequence[Sequence[int]], sampling: SamplingConfig) -> None:
    longest = max(map(len, prompts))
    room = context_length(model)
    if room and longest + sampling.max_new_tokens > room:
        raise ConfigError(
            f"sampling.max_new_tokens: got {sampling.max_new_tokens}; the longest prompt has "
            f"{longest} tokens and the model positions for {room}. "
            f"Try max_new_tokens={max(1, room - longest)}"
        )

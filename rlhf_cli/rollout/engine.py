"""Prompts in, tokens out. Log-probs never come from here: they come from the primitive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from rlhf_cli.errors import ConfigError
from rlhf_cli.rollout.config import SamplingConfig


@dataclass(frozen=True)
class Rollout:
    """Responses to prompts.

    Attributes:
        tokens: of each response, its end token included where there is one.
        finished: whether it ended by itself, not at the length limit.
    """

    tokens: list[list[int]]
    finished: list[bool]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    streamer: Any | None = None,
) -> Rollout:
    """Draw one response to each prompt, all in one batch.

    Args:
        model: a transformers causal language model in eval mode.
        tokenizer: says which tokens end a response and finds stop strings.
        prompts: token ids.
        sampling: how tokens are drawn; the caller seeds the generator.
        streamer: a transformers streamer, for a single prompt.

    Raises:
        ConfigError: the model has too few positions for prompt and response.
    """
    ends = end_tokens(model, tokenizer)
    filler = next(token for token in range(len(ends) + 1) if token not in ends)
    _require_room(model, prompts, sampling)
    tokens, mask = _pad_left(prompts, filler, model.device)
    with torch.inference_mode():
        output = model.generate(
            input_ids=tokens,
            attention_mask=mask,
            generation_config=_generation_config(sampling, ends, filler),
            tokenizer=tokenizer if sampling.stop else None,
            streamer=streamer,
        )
    responses = output[:, tokens.shape[1] :].tolist()
    cut = [_until_end(response, ends, filler) for response in responses]
    return Rollout(cut, [len(c) < sampling.max_new_tokens or c[-1] in ends for c in cut])


def _require_room(model: Any, prompts: Sequence[Sequence[int]], sampling: SamplingConfig) -> None:
    longest = max(map(len, prompts))
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if room and longest + sampling.max_new_tokens > room:
        raise ConfigError(
            f"sampling.max_new_tokens: got {sampling.max_new_tokens}; the longest prompt has "
            f"{longest} tokens and the model positions for {room}. "
            f"Try max_new_tokens={max(1, room - longest)}"
        )


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a response: the tokenizer's and those of the model's generation config."""
    listed = model.generation_config.eos_token_id
    others = listed if isinstance(listed, list) else [] if listed is None else [listed]
    return list(dict.fromkeys([tokenizer.eos_token_id, *others]))


def _generation_config(sampling: SamplingConfig, ends: list[int], filler: int) -> GenerationConfig:
    common: dict[str, Any] = {
        "max_new_tokens": sampling.max_new_tokens,
        "eos_token_id": ends,
        "pad_token_id": filler,
        "stop_strings": sampling.stop or None,
    }
    if sampling.temperature == 0:
        return GenerationConfig(do_sample=False, **common)
    return GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p or None,
        **common,
    )


def _pad_left(
    prompts: Sequence[Sequence[int]], filler: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    tokens = [[filler] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)


def _until_end(response: list[int], ends: list[int], filler: int) -> list[int]:
    """Without what stands behind the end: of a batch, all rows are as long as the longest."""
    for index, token in enumerate(response):
        if token in ends:
            return response[: index + 1]
    while response and response[-1] == filler:  # a stop string ended it
        response = response[:-1]
    return response

"""transformers' own `generate`, for architectures whose cache does not fit slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from rlhf_cli.context import forked_rng
from rlhf_cli.kernels.support import Support
from rlhf_cli.models.attention import ATTENTION, padded_attention
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.decode import writing
from rlhf_cli.rollout.ends import Ends
from rlhf_cli.rollout.schedule import Row


def generate_batched(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    seeds: Sequence[tuple[int, int, int]],
    sampling: SamplingConfig,
    ends: Ends,
    batch: int,
    streamer: Any | None = None,
    support: Support | None = None,
) -> None:
    """Write all rows, a batch after another, each until its longest response ends.

    The same call gives the same responses, but here a response depends on the others of its batch:
    one generator serves them all.
    """
    excluded = [] if support is None else support.excluded
    filler = next(token for token in range(len(ends.tokens) + 1) if token not in ends.tokens)
    for first in range(0, len(rows), batch):
        part = rows[first : first + batch]
        tokens, mask = _pad_left([row.before for row in part], filler, model.device)
        with writing(model, plain_attention(model)), forked_rng():
            torch.manual_seed(int(np.random.SeedSequence(seeds[first]).generate_state(1)[0]))
            output = model.generate(
                input_ids=tokens,
                attention_mask=mask,
                generation_config=_generation_config(sampling, ends.tokens, filler, excluded),
                tokenizer=tokenizer if sampling.stop else None,
                streamer=streamer,
            )
        for row, response in zip(part, output[:, tokens.shape[1] :].tolist(), strict=True):
            row.written.extend(_until_end(response, ends, filler))


def plain_attention(model: Any) -> str:
    """The attention that the model has for padded rows."""
    own: str = model.config._attn_implementation
    return padded_attention(model) if own == ATTENTION else own


def _generation_config(
    sampling: SamplingConfig, ends: list[int], filler: int, excluded: list[int]
) -> GenerationConfig:
    common: dict[str, Any] = {
        "max_new_tokens": sampling.max_new_tokens,
        "min_new_tokens": sampling.min_new_tokens or None,
        "eos_token_id": ends,
        "pad_token_id": filler,
        "stop_strings": sampling.stop or None,
        "suppress_tokens": excluded or None,
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


def _until_end(response: list[int], ends: Ends, filler: int) -> list[int]:
    """Without what stands behind the end: of a batch, all rows are as long as the longest."""
    for index, token in enumerate(response):
        if token in ends.tokens:
            return response[: index + 1]
    while response and response[-1] == filler and not ends.reached(response):  # a stop string
        response = response[:-1]
    return response

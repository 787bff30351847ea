"""Generation of responses: prompts in, responses out.

Log-probs of responses are computed by the policy, unless those of the sampler are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from rlhf_cli.console import logger
from rlhf_cli.context import forked_rng
from rlhf_cli.errors import ConfigError, DataError
from rlhf_cli.kernels.lm_head import Support
from rlhf_cli.memory.phase import phase
from rlhf_cli.models.context_length import context_length
from rlhf_cli.models.vocabulary import find_support, require_embedded_ids
from rlhf_cli.models.wrapper import ModelWrapper, read_head
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.continuous_batching import (
    DecodeOptions,
    attention_for_padding,
    decode,
    generation_mode,
)
from rlhf_cli.rollout.cuda_graphs import capture, require_cuda
from rlhf_cli.rollout.probe import (
    require_continuous_batching,
    require_cuda_graphs,
    supports_continuous_batching,
)
from rlhf_cli.rollout.response import Response
from rlhf_cli.rollout.sampling import Sampler
from rlhf_cli.rollout.stopping import StopCriteria

_SUPPORT: WeakKeyDictionary[Any, Support | None] = WeakKeyDictionary()

DEFAULT_BATCH_SIZE = 64
"""Responses decoded at once: on two cores, more are hardly faster."""


@dataclass(frozen=True)
class GenerationJob:
    """What one call of `generate` has to do.

    Attributes:
        model: a transformers causal language model.
        tokenizer: the model's tokenizer.
        responses: all samples of the first prompt, then of the second; filled in place.
        seeds: (seed, prompt number, sample number) of each response.
        sampling: how tokens are sampled.
        stop: end tokens and stop strings.
        batch_size: responses decoded at once.
        streamer: a transformers streamer, or None.
        support: ids that can be sampled; None where all can.
    """

    model: Any
    tokenizer: Any
    responses: Sequence[Response]
    seeds: Sequence[tuple[int, int, int]]
    sampling: SamplingConfig
    stop: StopCriteria
    batch_size: int
    streamer: Any | None = None
    support: Support | None = None


@phase("rollout")
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    samples: int = 1,
    batch_size: int = DEFAULT_BATCH_SIZE,
    prompt_numbers: Sequence[int] | None = None,
    streamer: Any | None = None,
    logprobs: bool = False,
) -> list[Response]:
    """Sample responses to prompts: all samples of the first prompt, then of the second, and so on.

    A response depends only on its prompt, the seed, and the numbers of its prompt and sample; on
    other prompts, batch size and order only by the rounding of logits.

    Args:
        model: a policy, with the adapters that are active now, or a transformers causal language
            model. Its mode, attention and gradients are restored.
        tokenizer: has the end token and finds stop strings. Ids that it has no token for are never
            sampled.
        prompts: token ids, at least one in each.
        sampling: how tokens are sampled.
        samples: responses per prompt.
        batch_size: responses decoded at once; memory grows with it.
        prompt_numbers: number of each prompt, >= 0, for its seed; by default its position. Where
            prompts come in portions, or again, other numbers give other samples.
        streamer: a transformers streamer, for one response.
        logprobs: keep the sampler's log-probs, in fp32: under the whole distribution at the
            temperature, before `top_k`, `top_p`, `min_p` and `min_new_tokens` remove tokens.

    Raises:
        ConfigError: the model has too few positions for prompt and response, or does not support
            continuous batching, which log-probs and CUDA graphs need.
        DataError: a prompt has no tokens, or one that the model does not embed.
        NonFinite: the logits are not finite.
        ValueError: log-probs are asked for at temperature 0, which has no distribution.
    """
    if logprobs and sampling.temperature == 0:
        raise ValueError("logprobs: asked for at temperature 0; need a temperature > 0")
    inner = model.model if isinstance(model, ModelWrapper) else model
    if not prompts:
        return []
    numbers = range(len(prompts)) if prompt_numbers is None else prompt_numbers
    _require_prompts(inner, prompts, numbers, sampling)
    _require_features(inner, sampling, logprobs=logprobs)
    job = GenerationJob(
        inner,
        tokenizer,
        responses=[
            Response(index * samples + sample, index, prompt)
            for index, prompt in enumerate(prompts)
            for sample in range(samples)
        ],
        seeds=[(sampling.seed, number, sample) for number in numbers for sample in range(samples)],
        sampling=sampling,
        stop=StopCriteria(inner, tokenizer, sampling),
        batch_size=batch_size,
        streamer=streamer,
        support=_support(inner, tokenizer),
    )
    if supports_continuous_batching(inner):
        _generate(job, keep_logprobs=logprobs)
    else:
        generate_with_transformers(job)
    for response in job.responses:
        response.finished = job.stop.is_met(response.token_ids)
    return list(job.responses)


def _generate(job: GenerationJob, *, keep_logprobs: bool) -> None:
    """Generate all responses by continuous batching."""
    sampling, streamer = job.sampling, job.streamer
    sampler = Sampler(sampling, job.stop.end_ids, job.seeds, keep_logprobs=keep_logprobs)

    def choose(logits: Tensor, active: Sequence[Response]) -> list[int]:
        tokens = sampler(logits, active)
        if streamer is not None:
            streamer.put(torch.tensor(tokens))
        return tokens

    def is_finished(response: Response) -> bool:
        tokens = response.token_ids
        return len(tokens) == sampling.max_new_tokens or job.stop.is_met(tokens)

    # long prompts first: rows of similar length are read together, and the last ones are cheap
    order = sorted(job.responses, key=lambda response: -len(response.prompt_ids))
    if streamer is not None:
        streamer.put(torch.tensor(job.responses[0].prompt_ids))
    options = DecodeOptions(
        job.batch_size,
        max_length=len(order[0].prompt_ids) + sampling.max_new_tokens,
        recorder=capture if sampling.cuda_graphs else None,
        support=job.support,
    )
    decode(job.model, order, options, choose, is_finished)
    if streamer is not None:
        streamer.end()


def generate_with_transformers(job: GenerationJob) -> None:
    """Generate all responses by transformers' `generate`, one static batch after another.

    For architectures whose cache continuous batching does not support. The same call gives the same
    responses, but here a response depends on the others of its batch: they share one generator.
    """
    model, end_ids = job.model, job.stop.end_ids
    pad = next(token for token in range(len(end_ids) + 1) if token not in end_ids)
    for first in range(0, len(job.responses), job.batch_size):
        batch = job.responses[first : first + job.batch_size]
        tokens, mask = _pad_left([one.prompt_ids for one in batch], pad, model.device)
        with generation_mode(model, attention_for_padding(model)), forked_rng():
            seed = np.random.SeedSequence(job.seeds[first]).generate_state(1)[0]
            torch.manual_seed(int(seed))
            output = model.generate(
                input_ids=tokens,
                attention_mask=mask,
                generation_config=_generation_config(job, pad),
                tokenizer=job.tokenizer if job.sampling.stop else None,
                streamer=job.streamer,
            )
        for response, ids in zip(batch, output[:, tokens.shape[1] :].tolist(), strict=True):
            response.token_ids.extend(_cut_at_end(ids, job.stop, pad))


def _generation_config(job: GenerationJob, pad: int) -> GenerationConfig:
    sampling = job.sampling
    common: dict[str, Any] = {
        "max_new_tokens": sampling.max_new_tokens,
        "min_new_tokens": sampling.min_new_tokens or None,
        "eos_token_id": job.stop.end_ids,
        "pad_token_id": pad,
        "stop_strings": sampling.stop or None,
        "suppress_tokens": (None if job.support is None else job.support.excluded) or None,
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
    prompts: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    tokens = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)


def _cut_at_end(token_ids: list[int], stop: StopCriteria, pad: int) -> list[int]:
    """Remove the padding after the end: all rows of a batch are as long as its longest."""
    for index, token in enumerate(token_ids):
        if token in stop.end_ids:
            return token_ids[: index + 1]
    while token_ids and token_ids[-1] == pad and not stop.is_met(token_ids):  # a stop string
        token_ids = token_ids[:-1]
    return token_ids


def _support(model: Any, tokenizer: Any) -> Support | None:
    """The ids that can be sampled; prints once per model how many cannot."""
    if model not in _SUPPORT:
        rows = len(read_head(model).weight)
        found = _SUPPORT[model] = find_support(tokenizer, rows)
        if found is not None:
            logger.info(
                f"rollout: {len(found.excluded)} of {rows} ids have no token in the tokenizer and "
                "are never sampled"
            )
    return _SUPPORT[model]


def _require_features(model: Any, sampling: SamplingConfig, *, logprobs: bool) -> None:
    require_cuda(sampling, model.device)
    if logprobs:
        require_continuous_batching(model, "rollout_logprobs", "reuse", "recompute")
    if sampling.cuda_graphs:
        require_cuda_graphs(model, capture)


def _require_prompts(
    model: Any,
    prompts: Sequence[Sequence[int]],
    numbers: Sequence[int],
    sampling: SamplingConfig,
) -> None:
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise DataError(f"prompts: number {index} has no tokens; need one at least")
    require_embedded_ids(prompts, model, lambda index: f"prompts: number {numbers[index]}")
    longest = max(map(len, prompts))
    positions = context_length(model)
    if positions and longest + sampling.max_new_tokens > positions:
        raise ConfigError(
            f"sampling.max_new_tokens: got {sampling.max_new_tokens}; the longest prompt has "
            f"{longest} tokens and the model positions for {positions}. "
            f"Try max_new_tokens={max(1, positions - longest)}"
        )

"""Whether a model supports continuous batching and CUDA graphs.

Checked once per model before its first rollout, on a few short responses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rlhf_cli.console import logger
from rlhf_cli.errors import ConfigError, NonFinite, first_line
from rlhf_cli.models.quantize import is_quantized
from rlhf_cli.rollout.continuous_batching import (
    DecodeOptions,
    attention_for_padding,
    decode,
    generation_mode,
)
from rlhf_cli.rollout.cuda_graphs import Recorder
from rlhf_cli.rollout.response import Response

TOLERANCE = 1e-4
"""fp32: relative to the spread of the log-probs; rounding is under 1e-5."""

COARSE_TOLERANCE = 0.1
"""bf16 and quantized weights: rounding is about 1e-2; a row that attends to another is about 1."""

PROMPT_LENGTHS = (5, 9, 7)
"""Tokens. There are two slots, so that a response leaves, another enters and one is moved."""

RESPONSE_LENGTHS = (6, 2, 4)
"""Tokens."""

WINDOWS = {"sliding_window": 4, "attention_chunk_size": 4}
"""Attention windows during the check, by their names in configs: shorter than the responses."""

_SUPPORTED: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
_GRAPH_PROBLEM: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def supports_continuous_batching(model: Any) -> bool:
    """Whether continuous batching gives the log-probs of the model's own forward pass.

    Prints one line the first time a model is checked.

    Raises:
        NonFinite: the log-probs are not finite.
    """
    if model not in _SUPPORTED:
        problem = _problem(model)
        _SUPPORTED[model] = not problem
        if problem:
            logger.info(
                f"rollout: transformers' generate; continuous batching does not work ({problem})"
            )
        else:
            logger.info("rollout: continuous batching equals the model's own forward pass")
    return _SUPPORTED[model]


def require_continuous_batching(model: Any, key: str, value: str, other: str) -> None:
    """Refuse an option that needs continuous batching for a model that does not support it.

    Args:
        model: checked by `supports_continuous_batching`, whose line says why not.
        key: the option.
        value: what it is set to.
        other: the value to try instead.

    Raises:
        ConfigError: the model does not support it.
    """
    if not supports_continuous_batching(model):
        raise ConfigError(
            f"{key}: got {value}, which needs continuous batching; a {type(model).__name__} does "
            f"not support it (see above). Try {key}={other}"
        )


def require_cuda_graphs(model: Any, recorder: Recorder) -> None:
    """Refuse CUDA graphs for a model that cannot be recorded, or whose replay differs.

    Prints one line the first time a model is checked.

    Raises:
        ConfigError: says what is wrong.
    """
    require_continuous_batching(model, "sampling.cuda_graphs", "true", "false")
    if model not in _GRAPH_PROBLEM:
        _GRAPH_PROBLEM[model] = _problem(model, recorder)
        if not _GRAPH_PROBLEM[model]:
            logger.info("rollout: CUDA graphs equal the model's own forward pass")
    if _GRAPH_PROBLEM[model]:
        raise ConfigError(
            f"sampling.cuda_graphs: got true, but {type(model).__name__} cannot be replayed "
            f"({_GRAPH_PROBLEM[model]}). Try sampling.cuda_graphs=false"
        )


def _problem(model: Any, recorder: Recorder | None = None) -> str:
    """What does not work; empty where all does."""
    with _narrow_windows(model):
        return _compare(model, recorder)


@contextmanager
def _narrow_windows(model: Any) -> Iterator[None]:
    """Shorten attention windows; a window that our attention ignores would not be noticed else."""
    before = [
        (holder, name, getattr(holder, name))
        for holder in (model.config.get_text_config(), *model.modules())
        for name in WINDOWS
        if isinstance(vars(holder).get(name), int)
    ]
    for holder, name, _ in before:
        setattr(holder, name, WINDOWS[name])
    try:
        yield
    finally:
        for holder, name, value in before:
            setattr(holder, name, value)


def _compare(model: Any, recorder: Recorder | None) -> str:
    responses, answers = _random_responses(model)
    try:
        ours = _decoded_logprobs(model, responses, answers, recorder)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, TypeError, ValueError, KeyError, RuntimeError) as error:
        return f"{type(error).__name__}: {first_line(error)}"
    expected = torch.cat([_forward_logprobs(model, response) for response in responses])
    if expected.isnan().any():
        raise NonFinite("sampling: the model's logits are not finite; its weights are damaged")
    off = float((ours - expected).norm() / (expected - expected.mean(1, keepdim=True)).norm())
    exact = model.dtype == torch.float32 and not is_quantized(model)
    tolerance = TOLERANCE if exact else COARSE_TOLERANCE
    return "" if off <= tolerance else f"log-probs differ by {off:.1e}, more than {tolerance:.0e}"


def _random_responses(model: Any) -> tuple[list[Response], list[list[int]]]:
    """Empty responses to random prompts, two to the same prompt, and the tokens to fill in."""
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)

    def random(length: int) -> list[int]:
        tokens: list[int] = torch.randint(0, vocabulary, (length,), generator=generator).tolist()
        return tokens

    prompts = [random(length) for length in PROMPT_LENGTHS]
    responses = [Response(index, index, prompt) for index, prompt in enumerate(prompts)]
    responses.append(Response(len(prompts), len(prompts) - 1, prompts[-1]))
    return responses, [random(length) for length in (*RESPONSE_LENGTHS, RESPONSE_LENGTHS[0])]


def _decoded_logprobs(
    model: Any,
    responses: Sequence[Response],
    answers: Sequence[Sequence[int]],
    recorder: Recorder | None,
) -> Tensor:
    """[n, V]: log-probs by continuous batching at each token of the answers."""
    found: list[list[Tensor]] = [[] for _ in responses]

    def choose(logits: Tensor, active: Sequence[Response]) -> list[int]:
        for response, logprobs in zip(active, logits.log_softmax(-1), strict=True):
            found[response.index].append(logprobs)
        return [answers[response.index][len(response.token_ids)] for response in active]

    def is_finished(response: Response) -> bool:
        return len(response.token_ids) == len(answers[response.index])

    lengths = [len(one.prompt_ids) + len(a) for one, a in zip(responses, answers, strict=True)]
    decode(model, responses, DecodeOptions(2, max(lengths), recorder), choose, is_finished)
    return torch.cat([torch.stack(each) for each in found])


def _forward_logprobs(model: Any, response: Response) -> Tensor:
    """[n, V]: log-probs by the model's own forward pass over one response."""
    tokens = torch.tensor([[*response.prompt_ids, *response.token_ids]], device=model.device)
    with generation_mode(model, attention_for_padding(model)):
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits[0]
    return logits.float().log_softmax(-1)[-len(response.token_ids) - 1 : -1]

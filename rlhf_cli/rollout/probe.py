"""Whether a model can be decoded in slots: checked once, on a few short rows, before the first."""

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
from rlhf_cli.rollout.batched import plain_attention
from rlhf_cli.rollout.decode import decode, writing
from rlhf_cli.rollout.graphs import Record
from rlhf_cli.rollout.schedule import Row

TOLERANCE = 1e-4
"""fp32: of the spread of the log-probs; rounding is under 1e-5."""

COARSE_TOLERANCE = 0.1
"""bf16 and packed weights: rounding is about 1e-2, a row that sees another about 1."""

PROMPTS = (5, 9, 7)
"""Lengths. There are two slots, so that a row leaves, another enters and one is moved."""

RESPONSES = (6, 2, 4)
"""Lengths."""

WINDOWS = {"sliding_window": 4, "attention_chunk_size": 4}
"""How far a token sees, under the names of configs, while it is checked: less than the rows."""

_FITS: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
_RECORDED: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def fits_slots(model: Any) -> bool:
    """Whether decoding in slots gives the log-probs of the model's own forward pass.

    Said in one line, the first time a model is asked for.

    Raises:
        NonFinite: the log-probs are not finite.
    """
    if model not in _FITS:
        problem = _problem(model)
        _FITS[model] = not problem
        if problem:
            logger.info(f"rollout: transformers' generate, not slots, which do not fit ({problem})")
        else:
            logger.info("rollout: decoding in slots equals the model's own forward pass")
    return _FITS[model]


def require_slots(model: Any, key: str, value: str, other: str) -> None:
    """Refuse an option that only decoding in slots has, for a model that does not fit them.

    Args:
        model: asked by `fits_slots`, whose line says why not.
        key: the option.
        value: what it has.
        other: what it could have instead.

    Raises:
        ConfigError: the model does not fit.
    """
    if not fits_slots(model):
        raise ConfigError(
            f"{key}: got {value}, but a {type(model).__name__} is not decoded in slots (see above)"
            f"; need slots for this. Try {key}={other}"
        )


def require_graphs(model: Any, record: Record) -> None:
    """Refuse CUDA graphs for a model whose passes cannot be recorded, or are others when replayed.

    Said in one line, the first time a model is asked for.

    Raises:
        ConfigError: says what is wrong.
    """
    require_slots(model, "sampling.cuda_graphs", "true", "false")
    if model not in _RECORDED:
        _RECORDED[model] = _problem(model, record)
        if not _RECORDED[model]:
            logger.info("rollout: CUDA graphs equal the model's own forward pass")
    if _RECORDED[model]:
        raise ConfigError(
            f"sampling.cuda_graphs: got true, but {type(model).__name__} cannot be replayed "
            f"({_RECORDED[model]}). Try sampling.cuda_graphs=false"
        )


def _problem(model: Any, record: Record | None = None) -> str:
    """What does not fit, or empty."""
    with _narrow(model):
        return _difference(model, record)


@contextmanager
def _narrow(model: Any) -> Iterator[None]:
    """Let windows be narrower than the rows; else one that attention is not told of goes unseen."""
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


def _difference(model: Any, record: Record | None) -> str:
    rows, answers = _rows(model)
    try:
        ours = _in_slots(model, rows, answers, record)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, TypeError, ValueError, KeyError, RuntimeError) as error:
        return f"{type(error).__name__}: {first_line(error)}"
    plain = torch.cat([_plain(model, row) for row in rows])
    if plain.isnan().any():
        raise NonFinite("sampling: the model's logits are not finite; its weights are damaged")
    off = float((ours - plain).norm() / (plain - plain.mean(1, keepdim=True)).norm())
    exact = model.dtype == torch.float32 and not is_quantized(model)
    tolerance = TOLERANCE if exact else COARSE_TOLERANCE
    return "" if off <= tolerance else f"log-probs differ by {off:.1e}, more than {tolerance:.0e}"


def _rows(model: Any) -> tuple[list[Row], list[list[int]]]:
    """Rows of random prompts, two of them of the same one, and what is to be written in each."""
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)

    def random(length: int) -> list[int]:
        tokens: list[int] = torch.randint(0, vocabulary, (length,), generator=generator).tolist()
        return tokens

    prompts = [random(length) for length in PROMPTS]
    rows = [Row(number, number, prompt) for number, prompt in enumerate(prompts)]
    rows.append(Row(len(prompts), len(prompts) - 1, prompts[-1]))
    return rows, [random(length) for length in (*RESPONSES, RESPONSES[0])]


def _in_slots(
    model: Any, rows: Sequence[Row], answers: Sequence[Sequence[int]], record: Record | None
) -> Tensor:
    """[n, V]: log-probs at each token of the answers, row after row."""
    found: list[list[Tensor]] = [[] for _ in rows]

    def choose(logits: Tensor, live: Sequence[Row]) -> list[int]:
        for row, logprobs in zip(live, logits.log_softmax(-1), strict=True):
            found[row.number].append(logprobs)
        return [answers[row.number][len(row.written)] for row in live]

    def ended(row: Row) -> bool:
        return len(row.written) == len(answers[row.number])

    longest = max(len(r.before) + len(a) for r, a in zip(rows, answers, strict=True))
    decode(model, rows, 2, longest, choose, ended, record)
    return torch.cat([torch.stack(each) for each in found])


def _plain(model: Any, row: Row) -> Tensor:
    """The same of one row, alone, whole."""
    tokens = torch.tensor([[*row.before, *row.written]], device=model.device)
    with writing(model, plain_attention(model)):
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits[0]
    return logits.float().log_softmax(-1)[-len(row.written) - 1 : -1]

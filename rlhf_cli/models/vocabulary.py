"""Compare the ids of a tokenizer with the embedding rows of models and of saved adapters.

A tokenizer can have tokens that a model has no embedding for (a `[PAD]` that was added and never
trained), and a model can have rows that the tokenizer has no token for (a vocabulary padded to a
round size). Both are allowed as long as no row of the data holds the first and none of the second
is sampled.

PEFT writes the input embeddings and the output layer beside an adapter's matrices where the
vocabulary was resized before training, or where they were trained fully. The base has fewer rows
then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from rlhf_cli.console import logger
from rlhf_cli.context import forked_rng
from rlhf_cli.data.examples import Examples
from rlhf_cli.errors import DataError, ModelError, first_line
from rlhf_cli.kernels.lm_head import Support
from rlhf_cli.models.resolve import ADAPTER_WEIGHTS
from rlhf_cli.models.stored_origin import Joined, WithMeanRows, mean_of_rows
from rlhf_cli.models.stored_tensor import (
    StoredTensor,
    hold,
    origin_of,
    parameter,
    replace_parameters,
)
from rlhf_cli.runs import artifact

MAX_LISTED = 3
"""Number of tokens that a message names."""

PREFIX = "base_model.model."
"""Prefix that PEFT puts before the names of a model's parameters."""

SUFFIXES = ("weight", "base_layer.weight", "token_adapter.base_layer.weight")
"""Names of an embedding's weight: plain, with low-rank matrices, and with rows of single tokens."""


def num_embeddings(model: Any) -> int:
    """Return the number of ids that a model embeds."""
    layer = model.get_input_embeddings()
    # PEFT's wrappers keep the layer as `original_module`, its adapter layers as `base_layer`
    layer = getattr(layer, "original_module", layer)
    return int(getattr(layer, "base_layer", layer).num_embeddings)


def vocabulary_size(tokenizer: Any) -> int:
    """Return the largest id + 1; `len(tokenizer)` is less where ids are left out."""
    ids: dict[str, int] = tokenizer.get_vocab()
    return 1 + max(ids.values())


def find_support(tokenizer: Any, rows: int) -> Support | None:
    """Find the ids that responses are sampled from; none where every row has a token.

    Args:
        tokenizer: of the model.
        rows: number of rows of the model's output layer.
    """
    known = set(tokenizer.get_vocab().values())
    tokens = [index for index in range(rows) if index in known]
    if not tokens or len(tokens) == rows:
        return None
    stop = tokens[-1] + 1
    return Support(rows, stop, tuple(index for index in range(stop) if index not in known))


def tokens_without_row(tokenizer: Any, rows: int) -> list[str]:
    """List the tokens that a model does not embed, in the order of their ids.

    Args:
        tokenizer: perhaps larger than the model.
        rows: number of ids that the model embeds.
    """
    found = {index: token for token, index in tokenizer.get_vocab().items() if index >= rows}
    return [found[index] for index in sorted(found)]


def describe_without_row(tokenizer: Any, rows: int) -> str:
    """Describe the tokens that a model does not embed; empty where it embeds all."""
    missing = tokens_without_row(tokenizer, rows)
    if not missing:
        return ""
    named = ", ".join(missing[:MAX_LISTED]) + (", ..." if len(missing) > MAX_LISTED else "")
    return (
        f"{len(missing)} of {len(tokenizer.get_vocab())} tokens ({named}) have no embedding in the "
        f"model, which has {rows}"
    )


def fit_vocabulary(
    model: Any, tokenizer: Any, new_tokens: Sequence[int] = (), adapters: Sequence[Path] = ()
) -> None:
    """Resize the embeddings for new tokens and for adapters; print which tokens have no row.

    A token without a row is an error only where a row of the data holds it, which is checked when
    the rows are known.

    Args:
        model: changed in place. Each added row, and that of each new token, is set to the mean of
            the others.
        tokenizer: of the model.
        new_tokens: ids that the model has not seen.
        adapters: folders of the adapters that will be attached.
    """
    size = num_embeddings(model)
    saved = [rows_needed_by_adapter(folder, model) for folder in adapters]
    needed = max([size, *(token + 1 for token in new_tokens), *saved])
    untrained = frozenset({*new_tokens, *range(size, needed)})
    if isinstance(model.get_input_embeddings().weight, StoredTensor):
        _resize_deferred(model, needed, untrained)
    else:
        _resize(model, needed, untrained)
    without = describe_without_row(tokenizer, needed)
    if without:
        logger.info(f"tokenizer: {without}; rows that hold none of them are fine")


def _resize(model: Any, rows: int, untrained: frozenset[int]) -> None:
    """Resize the embeddings, and set untrained rows to the mean of the others."""
    if rows > num_embeddings(model):
        with forked_rng():
            model.resize_token_embeddings(rows, mean_resizing=False)
    for layer in embedding_layers(model) if untrained else ():
        weight = layer.weight.data
        mean = mean_of_rows(origin_of(weight), untrained)
        weight[sorted(untrained)] = mean.to(weight.device)


def _resize_deferred(model: Any, rows: int, untrained: frozenset[int]) -> None:
    """Resize embeddings that are still in their file; the mean is computed when they are read."""
    device = model.get_input_embeddings().weight.device
    origins = hold(model)
    if rows > num_embeddings(model):
        with forked_rng():
            model.resize_token_embeddings(rows, mean_resizing=False)
    embeddings = {id(layer.weight) for layer in embedding_layers(model)}
    found = {}
    for name, param in model.named_parameters():
        if name in origins:
            shape, origin = tuple(param.shape), origins[name]
            if id(param) in embeddings and untrained:
                origin = WithMeanRows(shape, origin.dtype, origin, untrained)
            elif shape != origin.shape:  # the bias of an output layer, to which resizing adds zeros
                added = torch.zeros(shape[0] - origin.shape[0], dtype=origin.dtype)
                origin = Joined(shape, origin.dtype, [origin, origin_of(added)])
            found[id(param)] = parameter(param, StoredTensor.of(origin, device))
    replace_parameters(model, found)


def require_embedded(examples: Examples, model: Any, name: str = "model") -> None:
    """Refuse a data set with an id that a model does not embed.

    Args:
        examples: of the whole data set.
        model: a transformers model that takes its rows.
        name: of the model in the message.

    Raises:
        DataError: counts the rows, and names the first by file and line.
    """
    rows = num_embeddings(model)
    beyond: NDArray[np.int64] = np.flatnonzero(examples.tokens >= rows)
    if not len(beyond):
        return
    affected = np.unique(np.searchsorted(examples.row_starts, beyond, side="right"))
    example = int(np.searchsorted(examples.token_starts, beyond[0], side="right")) - 1
    where, index = examples.location(example), int(examples.tokens[beyond[0]])
    raise _not_embedded(f"{len(affected)} rows", where, index, rows, name)


def require_embedded_ids(
    texts: Sequence[Sequence[int]],
    model: Any,
    where: Callable[[int], str],
    name: str = "model",
    what: str = "prompts",
) -> None:
    """Refuse prompts, or other texts, with an id that a model does not embed.

    Args:
        texts: token ids of each.
        model: a transformers model that takes them.
        where: index of a text -> its location in a message.
        name: of the model in the message.
        what: plural noun for the texts.

    Raises:
        DataError: counts the texts, and names the first.
    """
    rows = num_embeddings(model)
    affected = [number for number, ids in enumerate(texts) if max(ids, default=0) >= rows]
    if affected:
        first = next(index for index in texts[affected[0]] if index >= rows)
        raise _not_embedded(f"{len(affected)} {what}", where(affected[0]), first, rows, name)


def require_policy_vocabulary(model: Any, policy: Any, tokenizer: Any, key: str, path: str) -> None:
    """Refuse a model that takes a policy's responses but does not embed all of the policy's ids.

    Args:
        model: a transformers model.
        policy: a transformers model that generates.
        tokenizer: of both.
        key: config key of `path`.
        path: of the model.

    Raises:
        ModelError: says how many tokens it embeds.
    """
    needed = min(num_embeddings(policy), vocabulary_size(tokenizer))
    if num_embeddings(model) < needed:
        missing = describe_without_row(tokenizer, num_embeddings(model))
        raise ModelError(
            f"{key}: {path} does not fit its tokenizer: {missing}; the policy has {needed}. Need a "
            "model that embeds every token that the policy can generate"
        )


def _not_embedded(what: str, where: str, index: int, rows: int, name: str) -> DataError:
    return DataError(
        f"{where}: token id {index} has no embedding in the {name}, which has {rows}; {what} hold "
        "such ids. Take the token out of the rows or the chat template, or give the tokenizer "
        "that the model was trained with (model.tokenizer=FOLDER_OR_HUB_ID)"
    )


def whole_embeddings(folder: Path, model: Any) -> dict[str, int]:
    """Find input embeddings and output layer in an adapter's file: name there -> number of rows.

    Args:
        folder: of the adapter.
        model: a transformers model, without adapters.

    Raises:
        ModelError: the file is damaged.
    """
    if not (folder / ADAPTER_WEIGHTS).is_file():
        return {}
    names = whole_keys(model)
    try:
        with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
            found = names & {*file.keys()}
            return {key: int(file.get_slice(key).get_shape()[0]) for key in sorted(found)}
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"model.path: the adapter in {folder} cannot be put on this base ({first_line(error)})"
        ) from error


def rows_needed_by_adapter(folder: Path, model: Any) -> int:
    """Return the number of rows that a base must embed for an adapter; 0 for one without rows.

    Args:
        folder: of the adapter.
        model: a transformers model, without adapters.
    """
    single = [index + 1 for ids in saved_token_indices(folder).values() for index in ids]
    return max([*whole_embeddings(folder, model).values(), *single], default=0)


def whole_keys(model: Any) -> set[str]:
    """List the names that whole embeddings can have in an adapter's file.

    Args:
        model: a transformers model, perhaps with adapters on it.
    """
    names = embedding_names(model)
    return {f"{PREFIX}{name}.{suffix}" for name in names for suffix in SUFFIXES}


def embedding_names(model: Any) -> list[str]:
    """List the names of the input embeddings and of the output layer, where a model has one."""
    layers = embedding_layers(model)
    return [name for name, module in model.named_modules() if module in layers]


def embedding_layers(model: Any) -> set[Any]:
    """Return the input embeddings, and the output layer where a model has one."""
    return {model.get_input_embeddings(), model.get_output_embeddings()} - {None}


def saved_token_indices(folder: Path) -> Mapping[str, list[int]]:
    """Read from an adapter's config: layer -> ids of the tokens that it has rows for."""
    file = folder / artifact.ADAPTER_CONFIG
    if not file.is_file():
        return {}
    found = json.loads(file.read_text(encoding="utf-8")).get("trainable_token_indices") or {}
    return found if isinstance(found, dict) else {"": found}

"""Which ids a tokenizer and a model have in common.

A tokenizer can have tokens for which a model has no embedding (a `[PAD]` that was added and never
trained), and a model can have rows for which the tokenizer has no token (a vocabulary padded to a
round size). Both are fine as long as no row of the data holds the first and none of the second is
drawn.

Embeddings in the file of an adapter: whole ones, and the rows of single tokens.

PEFT writes the input embeddings and the output layer beside the adapter's matrices where the
vocabulary was resized before training, or where they were trained whole. The base is shorter then.
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

from rlhf_cli.context import forked_rng, say
from rlhf_cli.data.examples import Examples
from rlhf_cli.errors import DataError, ModelError, first_line
from rlhf_cli.kernels.support import Support
from rlhf_cli.models.resolve import ADAPTER_WEIGHTS
from rlhf_cli.runs import artifact

NAMED = 3
"""Tokens that a message lists by name."""


def embedding_rows(model: Any) -> int:
    """How many ids a model embeds."""
    layer = model.get_input_embeddings()
    # PEFT's wrappers keep the layer as `original_module`, its adapter layers as `base_layer`
    layer = getattr(layer, "original_module", layer)
    return int(getattr(layer, "base_layer", layer).num_embeddings)


def vocabulary_size(tokenizer: Any) -> int:
    """One behind the largest id; `len(tokenizer)` is less where ids are left out."""
    ids: dict[str, int] = tokenizer.get_vocab()
    return 1 + max(ids.values())


def find_support(tokenizer: Any, rows: int) -> Support | None:
    """The ids that responses are drawn from, or none where every row has a token.

    Args:
        tokenizer: of the model.
        rows: of the model's output layer.
    """
    known = set(tokenizer.get_vocab().values())
    tokens = [index for index in range(rows) if index in known]
    if not tokens or len(tokens) == rows:
        return None
    stop = tokens[-1] + 1
    return Support(rows, stop, tuple(index for index in range(stop) if index not in known))


def tokens_without_row(tokenizer: Any, rows: int) -> list[str]:
    """The tokens whose ids a model does not embed, by their ids.

    Args:
        tokenizer: perhaps larger than the model.
        rows: that the model embeds.
    """
    found = {index: token for token, index in tokenizer.get_vocab().items() if index >= rows}
    return [found[index] for index in sorted(found)]


def describe_without_row(tokenizer: Any, rows: int) -> str:
    """How many tokens a model does not embed, and the first of them; empty where it embeds all."""
    missing = tokens_without_row(tokenizer, rows)
    if not missing:
        return ""
    named = ", ".join(missing[:NAMED]) + (", ..." if len(missing) > NAMED else "")
    return (
        f"{len(missing)} of {len(tokenizer.get_vocab())} tokens ({named}) have no embedding in the "
        f"model, which has {rows}"
    )


def require_embedded(examples: Examples, model: Any, name: str = "model") -> None:
    """Refuse rows that hold an id that a model does not embed.

    Args:
        examples: of a whole data set.
        model: a transformers model that is given their rows.
        name: of the model in the message.

    Raises:
        DataError: says how many rows there are, and names the first by file and line.
    """
    rows = embedding_rows(model)
    beyond: NDArray[np.int64] = np.flatnonzero(examples.tokens >= rows)
    if not len(beyond):
        return
    holding = np.unique(np.searchsorted(examples.row_starts, beyond, side="right"))
    example = int(np.searchsorted(examples.token_starts, beyond[0], side="right")) - 1
    where, index = examples.where(example), int(examples.tokens[beyond[0]])
    raise _not_embedded(f"{len(holding)} rows", where, index, rows, name)


def require_embedded_ids(
    texts: Sequence[Sequence[int]],
    model: Any,
    where: Callable[[int], str],
    name: str = "model",
    what: str = "prompts",
) -> None:
    """Refuse prompts, or other texts, that hold an id that a model does not embed.

    Args:
        texts: token ids of each.
        model: a transformers model that is given them.
        where: the place of a text -> what it is called in a message.
        name: of the model in the message.
        what: the texts are, in the plural.

    Raises:
        DataError: says how many there are, and names the first.
    """
    rows = embedding_rows(model)
    holding = [place for place, ids in enumerate(texts) if max(ids, default=0) >= rows]
    if holding:
        first = next(index for index in texts[holding[0]] if index >= rows)
        raise _not_embedded(f"{len(holding)} {what}", where(holding[0]), first, rows, name)


def require_shared_rows(model: Any, policy: Any, tokenizer: Any, key: str, path: str) -> None:
    """Refuse a model that is given a policy's responses and does not embed all that it can write.

    Args:
        model: a transformers model.
        policy: a transformers model; writes.
        tokenizer: of both.
        key: that `path` was given under.
        path: of the model.

    Raises:
        ModelError: says how many tokens it embeds.
    """
    needed = min(embedding_rows(policy), vocabulary_size(tokenizer))
    if embedding_rows(model) < needed:
        missing = describe_without_row(tokenizer, embedding_rows(model))
        raise ModelError(
            f"{key}: {path} does not fit its tokenizer: {missing}; the policy has {needed}. Need a "
            "model that embeds what the policy writes"
        )


def _not_embedded(what: str, where: str, index: int, rows: int, name: str) -> DataError:
    return DataError(
        f"{where}: token id {index} has no embedding in the {name}, which has {rows}; {what} hold "
        "such ids. Take the token out of the rows or the chat template, or give the tokenizer "
        "that the model was trained with (model.tokenizer=FOLDER_OR_HUB_ID)"
    )


PREFIX = "base_model.model."
"""What PEFT puts before the names of a model's parameters."""

SUFFIXES = ("weight", "base_layer.weight", "token_adapter.base_layer.weight")
"""Of a layer as it is, with matrices on it, and with rows of single tokens."""


def whole_embeddings(folder: Path, model: Any) -> dict[str, int]:
    """Name in the file of an adapter -> rows, of input embeddings and output layer saved whole.

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
            held = names & {*file.keys()}
            return {key: int(file.get_slice(key).get_shape()[0]) for key in sorted(held)}
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"model.path: the adapter in {folder} cannot be put on this base ({first_line(error)})"
        ) from error


def rows_of(folder: Path, model: Any) -> int:
    """How many rows a base must embed for an adapter; 0 where the adapter has no embeddings.

    Args:
        folder: of the adapter.
        model: a transformers model, without adapters.
    """
    single = [index + 1 for ids in trained_rows(folder).values() for index in ids]
    return max([*whole_embeddings(folder, model).values(), *single], default=0)


def whole_keys(model: Any) -> set[str]:
    """Names that whole embeddings can have in the file of an adapter.

    Args:
        model: a transformers model, perhaps with adapters on it.
    """
    names = embedding_names(model)
    return {f"{PREFIX}{name}.{suffix}" for name in names for suffix in SUFFIXES}


def embedding_names(model: Any) -> list[str]:
    """Names of the input embeddings and of the output layer, where a model has one."""
    layers = {model.get_input_embeddings(), model.get_output_embeddings()} - {None}
    return [name for name, module in model.named_modules() if module in layers]


def trained_rows(folder: Path) -> Mapping[str, list[int]]:
    """Layer -> ids of the tokens whose rows an adapter has of its own, by its description."""
    file = folder / artifact.ADAPTER
    if not file.is_file():
        return {}
    found = json.loads(file.read_text(encoding="utf-8")).get("trainable_token_indices") or {}
    return found if isinstance(found, dict) else {"": found}


def fit_vocabulary(
    model: Any, tokenizer: Any, new_tokens: Sequence[int] = (), adapters: Sequence[Path] = ()
) -> None:
    """Make room for new tokens and for the embeddings of adapters; say which tokens have no room.

    Tokens that are neither have no embedding, like a `[PAD]` that was added and never trained. That
    is no fault as long as no row holds one, which is looked at where rows are known.

    Args:
        model: changed in place. Each row that is added, and that of each new token, is the mean of
            the others.
        tokenizer: of the model.
        new_tokens: ids that the model has not seen.
        adapters: folders of the adapters that will be put on it.
    """
    size = embedding_rows(model)
    saved = [rows_of(folder, model) for folder in adapters]
    needed = max([size, *(token + 1 for token in new_tokens), *saved])
    if needed > size:
        with forked_rng():
            model.resize_token_embeddings(needed, mean_resizing=False)
    untrained = sorted({*new_tokens, *range(size, needed)})
    if untrained:
        for layer in {model.get_input_embeddings(), model.get_output_embeddings()} - {None}:
            _fill_with_mean(layer.weight.data, untrained)
    without = describe_without_row(tokenizer, needed)
    if without:
        say(f"tokenizer: {without}; rows that hold none of them are fine")


def _fill_with_mean(weight: torch.Tensor, rows: list[int]) -> None:
    known = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
    known[rows] = False
    weight[rows] = weight[known].mean(0)

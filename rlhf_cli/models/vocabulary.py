"""Which ids a tokenizer and a model have in common.

A tokenizer can have tokens for which a model has no embedding (a `[PAD]` that was added and never
trained), and a model can have rows for which the tokenizer has no token (a vocabulary padded to a
round size). Both are fine as long as no row of the data holds the first and none of the second is
drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.data.examples import Examples
from rlhf_cli.errors import DataError, ModelError
from rlhf_cli.kernels.lm_head import Support

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
    where, index = examples.location(example), int(examples.tokens[beyond[0]])
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

"""Embedding rows of single tokens in an adapter, for tokens that the base has never seen.

PEFT's `trainable_token_indices`: an adapter holds k rows of width d for the input embeddings, and
as many for an output layer with weights of its own. The base stays unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.utils import TrainableTokensWrapper

from rlhf_cli.errors import ModelError
from rlhf_cli.models.adapters import TOKEN_ROWS_KEY
from rlhf_cli.models.vocabulary import (
    PREFIX,
    SUFFIXES,
    embedding_names,
    whole_embeddings,
    whole_keys,
)

TokenIndices = dict[str, list[int]]
"""Name of a layer -> ids of the tokens whose rows are trained."""


def trainable_token_indices(
    model: Any, tokens: Sequence[int], targets: str | Iterable[str], whole: Iterable[str]
) -> TokenIndices:
    """Build PEFT's `trainable_token_indices` for some tokens.

    Args:
        model: the base, perhaps with adapters on it.
        tokens: ids, perhaps none.
        targets: layers with low-rank matrices, which adapt every row already.
        whole: layers that are trained fully.

    Raises:
        ModelError: the output layer has a bias, which PEFT leaves out.
    """
    if not tokens:
        return {}
    others = {targets} if isinstance(targets, str) else {*targets}
    ends = tuple(f".{other}" for other in others | {*whole})
    layers = [name for name in _layers_with_rows(model) if not f".{name}".endswith(ends)]
    return {name: list(tokens) for name in layers}


def add_token_rows(config: PeftConfig, model: Any, tokens: Sequence[int]) -> None:
    """Add tokens to the config of a saved adapter, after those that it has.

    Layers that the model does not have are left out: a reward model that starts from the adapter of
    a language model has no output layer.
    """
    own = getattr(config, "trainable_token_indices", None)
    before = own if isinstance(own, dict) else {_input_embeddings_name(model): own} if own else {}
    before = {name: ids for name, ids in before.items() if _has(model, name)}
    targets, whole = config.target_modules or (), config.modules_to_save or ()
    wanted = trainable_token_indices(model, tokens, targets, whole)
    rows = {name: [*before.get(name, []), *wanted.get(name, [])] for name in before | wanted}
    config.trainable_token_indices = rows or None


def _has(model: Any, layer: str) -> bool:
    return any(f".{name}".endswith(f".{layer}") for name, _ in model.named_modules())


def _input_embeddings_name(model: Any) -> str:
    inputs = model.get_input_embeddings()
    return next(str(name) for name, module in model.named_modules() if module is inputs)


def _layers_with_rows(model: Any) -> list[str]:
    """List the layers that need rows for a new token: one where they are tied, else both."""
    output, inputs = model.get_output_embeddings(), model.get_input_embeddings()
    names = embedding_names(model)
    if output is None:  # a reward model
        return names
    if getattr(output, "bias", None) is not None:
        raise ModelError(
            f"adapter.kind: the output layer of a {type(model).__name__} has a bias, which PEFT "
            "leaves out where an adapter learns new tokens. Try adapter=none, or "
            "model.chat_template=FILE with a template that needs no new token"
        )
    if model.config.get_text_config().tie_word_embeddings:  # one set of rows serves both
        return [name for name in names if model.get_submodule(name) is inputs]
    return names


def require_tied_rows(model: Any) -> None:
    """Refuse rows of the input embeddings that a tied output layer does not have.

    Raises:
        ModelError: names the class of the model.
    """
    inputs, output = model.get_input_embeddings(), model.get_output_embeddings()
    tied = model.config.get_text_config().tie_word_embeddings and output is not None
    if tied and isinstance(inputs, TrainableTokensWrapper) != isinstance(
        output, TrainableTokensWrapper
    ):
        raise ModelError(
            f"adapter.kind: the output layer of a {type(model).__name__} is tied to its input "
            "embeddings in a way that PEFT does not follow for new tokens. Try adapter=none"
        )


def replaced_embeddings(folder: Path, model: Any) -> list[str]:
    """List the embeddings in an adapter's file that replace the base's.

    Those that the adapter has as copies of its own (PEFT's `modules_to_save`) are not among them.
    """
    found = whole_embeddings(folder, model)
    if not found:
        return []
    copies = tuple(PeftConfig.from_pretrained(folder).modules_to_save or ())
    return [key for key in found if not key.removesuffix(".weight").endswith(copies)]


def extend_saved_rows(
    stored: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], model: Any
) -> dict[str, torch.Tensor]:
    """Extend the embeddings of an adapter's file to the number of rows that the model needs.

    The base has more where a vocabulary was cut to the tokenizer's size before training, and a run
    that adds tokens has more than the file. The missing rows keep the values that the model has
    before the file is read. For a classifier, an output layer in the file is left out.

    Args:
        stored: tensors of the file.
        expected: tensors of the model with the adapter on it, before the file is read.
        model: the base.
    """
    names, classifies = whole_keys(model), not model.can_generate()
    suffixes = (*(f".{suffix}" for suffix in SUFFIXES), f".token_adapter{TOKEN_ROWS_KEY}")

    def is_foreign(key: str) -> bool:
        suffix = next((end for end in suffixes if key.endswith(end)), "")
        layer = key.removeprefix(PREFIX).removesuffix(suffix)
        return classifies and bool(suffix) and key not in expected and not _has(model, layer)

    def extended(key: str, value: torch.Tensor) -> torch.Tensor:
        wanted = expected.get(key)
        extends = key in names or key.endswith(TOKEN_ROWS_KEY)
        if wanted is None or not extends or value.shape[1:] != wanted.shape[1:]:
            return value
        return torch.cat([value, wanted[len(value) :].detach().to(value)])

    return {key: extended(key, value) for key, value in stored.items() if not is_foreign(key)}


@cache
def patch_peft_token_rows() -> None:
    """Let PEFT save and load an adapter without token rows beside one that has them.

    PEFT (0.21) asks each adapter on a model for its rows, and raises KeyError for one without.
    """
    for name in ("adapter_state_dict", "adapter_state_dict_load_map"):
        method = _empty_without_rows(getattr(TrainableTokensWrapper, name))
        setattr(TrainableTokensWrapper, name, method)


def _empty_without_rows(method: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    @wraps(method)
    def patched(wrapper: Any, adapter: str, *others: Any) -> dict[str, Any]:
        has = adapter in wrapper.token_adapter.token_indices
        return method(wrapper, adapter, *others) if has else {}

    return patched

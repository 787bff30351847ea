"""Embeddings in the file of an adapter: whole ones, and the rows of single tokens.

PEFT writes the input embeddings and the output layer beside the adapter's matrices where the
vocabulary was resized before training, or where they were trained whole. The base is shorter then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rlhf_cli.errors import ModelError, first_line
from rlhf_cli.models.source import ADAPTER_WEIGHTS
from rlhf_cli.runs import artifact

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
    file = folder / artifact.ADAPTER_CONFIG
    if not file.is_file():
        return {}
    found = json.loads(file.read_text(encoding="utf-8")).get("trainable_token_indices") or {}
    return found if isinstance(found, dict) else {"": found}

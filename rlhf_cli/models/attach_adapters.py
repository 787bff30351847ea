"""Attach adapters to a base model: saved ones, and a new one where the config asks for it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import (
    ModulesToSaveWrapper,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file

from rlhf_cli.context import forked_rng
from rlhf_cli.errors import ModelError
from rlhf_cli.models.adapters import TOKEN_ROWS_KEY, TRAINED_ADAPTER, Adapters
from rlhf_cli.models.config import AdapterConfig
from rlhf_cli.models.lora_config import build_lora_config, peft_task
from rlhf_cli.models.quantize import has_quantized_weight
from rlhf_cli.models.resolve import ADAPTER_WEIGHTS, STACKED_PREFIX, ModelSource
from rlhf_cli.models.reward_model import HEAD
from rlhf_cli.models.stored_tensor import read, read_parameters
from rlhf_cli.models.trainable_tokens import (
    add_token_rows,
    extend_saved_rows,
    patch_peft_token_rows,
    replaced_embeddings,
    require_tied_rows,
)
from rlhf_cli.models.vocabulary import embedding_layers
from rlhf_cli.runs.model_checks import compare_adapter

State = Mapping[str, torch.Tensor]


def attach_adapters(
    model: Any, source: ModelSource, cfg: AdapterConfig, seed: int, new_tokens: Sequence[int] = ()
) -> Adapters:
    """Attach the saved adapters of a source, and a new one where the config asks for it.

    Args:
        model: the base; its layers are wrapped in place.
        source: adapters to load, in order.
        cfg: with `start=continue` the last of them is trained on, else a new one is.
        seed: of a new adapter's random matrices.
        new_tokens: ids that the trained adapter gets embedding rows for.

    Returns:
        Adapters with the role `policy`, and with a new adapter also `reference`: the model that
        training starts from.

    Raises:
        ModelError: an adapter does not fit the base, or a target is missing.
    """
    patch_peft_token_rows()
    saved = list(source.adapters)
    whole = [folder for folder in saved if replaced_embeddings(folder, model)]
    if whole and new_tokens:
        raise _no_new_tokens(whole[0])
    adds_new = not saved or cfg.start == "stack"
    frozen = [f"{STACKED_PREFIX}{i}" for i in range(len(saved) if adds_new else len(saved) - 1)]
    names = [*frozen, TRAINED_ADAPTER]
    wrapped: Any = None
    for name, folder in zip(names, saved, strict=False):
        tokens = new_tokens if name == TRAINED_ADAPTER else ()
        wrapped = _load(model, wrapped, name, folder, tokens)
    if adds_new:
        config = _with_same_experts(wrapped, build_lora_config(model, cfg, new_tokens))
        with forked_rng():
            torch.manual_seed(seed)
            wrapped = _add(model, wrapped, TRAINED_ADAPTER, config)
        # fully trained layers stay where they are: each rank reads its own rows
        read_parameters(wrapped, lambda full, _: _is_small(full))
    elif cfg.kind != "none":
        _require_same_config(wrapped.peft_config[TRAINED_ADAPTER], cfg, saved[-1])
    roles = {"policy": names, **({"reference": frozen} if adds_new else {})}
    return Adapters(wrapped, source, roles, whole_embeddings=bool(whole))


def _with_same_experts(wrapped: Any, config: LoraConfig) -> LoraConfig:
    """Let a new adapter adapt the experts of those below it, which PEFT requires."""
    below = wrapped.peft_config.values() if wrapped is not None else ()
    for other in below:
        if other.target_parameters and config.target_parameters:
            config.target_parameters = list(other.target_parameters)
    return config


def _add(model: Any, wrapped: Any, name: str, config: PeftConfig) -> Any:
    """Add an adapter to the base, or to the PEFT model around it; return the PEFT model."""
    with warnings.catch_warnings():
        # PEFT reads transformers' checkpointing state by a name that is being replaced
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        # a rank for experts takes effect, although PEFT looks for it among the modules
        warnings.filterwarnings("ignore", ".*_pattern keys did not match", RuntimeWarning)
        # the base is named when the adapter is saved, not here
        warnings.filterwarnings("ignore", ".*`base_model_name_or_path` was renamed", UserWarning)
        if wrapped is None:
            wrapped = get_peft_model(model, config, adapter_name=name)
        else:
            wrapped.add_adapter(name, config)
    require_tied_rows(model)
    return wrapped


def _load(model: Any, wrapped: Any, name: str, folder: Path, new_tokens: Sequence[int] = ()) -> Any:
    """Attach a saved adapter, with rows for new tokens; return the PEFT model.

    Raises:
        ModelError: it was made for another base, or its file is damaged.
    """
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        raise ModelError(
            f"model.path: {folder} has an adapter's config and no {ADAPTER_WEIGHTS}; need the "
            "weights as safetensors. A pickle (.bin) is not read: it can run any code"
        )
    try:
        config = PeftConfig.from_pretrained(folder)
        # a reward model can start from a language model's adapter
        config.task_type = peft_task(model)
        add_token_rows(config, model, new_tokens)
        wrapped = _add(model, wrapped, name, config)
        _require_unquantized_output(model, folder)
        _read_replaced(wrapped, model, name, folder)
        expected = get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=True)
        found = extend_saved_rows(load_file(file), expected, model)
        stored = {key: read(value) for key, value in found.items()}
        own = get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False)
        _require_fit(folder, stored, expected, own)
        stored = _new_heads(expected) | stored
        set_peft_model_state_dict(wrapped, stored, adapter_name=name)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"model.path: the adapter in {folder} cannot be put on this base "
            f"({str(error).splitlines()[0][:200]})"
        ) from error
    return wrapped


def _read_replaced(wrapped: Any, model: Any, name: str, folder: Path) -> None:
    """Read deferred weights that an adapter's file has values for: its own, and embeddings."""
    replaced = replaced_embeddings(folder, model)
    layers = embedding_layers(model) if replaced else set()
    embeddings = {id(param) for layer in layers for param in layer.parameters()}
    read_parameters(wrapped, lambda full, p: f".{name}." in f"{full}." or id(p) in embeddings)


def _require_unquantized_output(model: Any, folder: Path) -> None:
    """Refuse a saved adapter on an output layer that is quantized in this run.

    Raises:
        ModelError: names the adapter.
    """
    layer = model.get_output_embeddings()
    wrapped = isinstance(layer, BaseTunerLayer | ModulesToSaveWrapper)
    if wrapped and has_quantized_weight(layer):
        raise ModelError(
            f"quant.output_layer: got true, and the adapter in {folder} has a part on the output "
            "layer, which must not be quantized then. Try quant.output_layer=false"
        )


def _new_heads(state: State) -> dict[str, torch.Tensor]:
    """Select the head that a reward model's base has; a language model's adapter brings none."""
    return {key: value for key, value in state.items() if key.endswith(f".{HEAD}.weight")}


def _require_fit(folder: Path, stored: State, expected: State, own: Iterable[str]) -> None:
    """Refuse an adapter whose tensors are not those that PEFT made for this base.

    Raises:
        ModelError: names the first tensor that is missing, or has another shape.
    """
    has = {key: tuple(value.shape) for key, value in stored.items()}
    needs = {key: tuple(value.shape) for key, value in expected.items()}
    missing = [key for key in own if key not in has and ("lora_" in key or TOKEN_ROWS_KEY in key)]
    other = [key for key in has if has[key] != needs.get(key)]
    if missing or other:
        key = (missing or other)[0]
        raise ModelError(
            f"model.path: the adapter in {folder} was made for another base: {key} is "
            f"{has.get(key, 'not there')}, and this base needs {needs.get(key, 'no such')}"
        )


def _is_small(name: str) -> bool:
    """Return whether a parameter of the trained adapter is a matrix, a vector or a few rows."""
    return f".{TRAINED_ADAPTER}." in f"{name}." and ".modules_to_save." not in name


def _no_new_tokens(folder: Path) -> ModelError:
    return ModelError(
        f"adapter.start: the adapter in {folder} has whole embeddings beside its matrices, and "
        "this run adds tokens to the tokenizer, whose rows would be trained apart from those. "
        "Try adapter.start=merge"
    )


def _require_same_config(found: Any, cfg: AdapterConfig, folder: Path) -> None:
    """Refuse to continue an adapter that differs from what the config describes."""
    lines = compare_adapter(cfg, found.to_dict(), AdapterConfig(), str(folder))
    if lines:
        raise ModelError("\n".join(lines))

"""Put adapters on a base: those of a folder, and a new one where the configuration asks for it."""

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
from rlhf_cli.models.adapters import TOKEN_ROWS, TRAINED, Adapters
from rlhf_cli.models.config import AdapterConfig
from rlhf_cli.models.lora_config import new_adapter, peft_task
from rlhf_cli.models.quantize import packed_weight
from rlhf_cli.models.resolve import ADAPTER_WEIGHTS, STACKED, Source
from rlhf_cli.models.reward_model import HEAD
from rlhf_cli.models.trainable_tokens import (
    add_token_rows,
    mend_rows,
    require_rows_tied,
    saved_whole,
    with_rows_of_base,
)
from rlhf_cli.runs.model_files import unlike_adapter

State = Mapping[str, torch.Tensor]


def attach(
    model: Any, source: Source, cfg: AdapterConfig, seed: int, new_tokens: Sequence[int] = ()
) -> Adapters:
    """Put the adapters of a source, and a new one where the config asks for it, on a base.

    Args:
        model: the base; its layers are wrapped in place.
        source: adapters to load, in order.
        cfg: with `start=continue` the last of them is trained on, else a new one is.
        seed: of a new adapter's random half.
        new_tokens: ids that the adapter which is trained gets rows of its own for.

    Returns:
        Adapters with the role `policy`, and `reference`: what a new adapter starts from.

    Raises:
        ModelError: an adapter does not fit the base, or its targets are not there.
    """
    mend_rows()
    loaded = list(source.adapters)
    whole = [folder for folder in loaded if saved_whole(folder, model)]
    if whole and new_tokens:
        raise _no_room(whole[0])
    fresh = not loaded or cfg.start == "stack"
    below = [f"{STACKED}{i}" for i in range(len(loaded) if fresh else len(loaded) - 1)]
    names = [*below, TRAINED]
    wrapped: Any = None
    for name, folder in zip(names, loaded, strict=False):
        wrapped = _load(model, wrapped, name, folder, new_tokens if name == TRAINED else ())
    if fresh:
        config = _beside(wrapped, new_adapter(model, cfg, new_tokens))
        with forked_rng():
            torch.manual_seed(seed)
            wrapped = _add(model, wrapped, TRAINED, config)
    elif cfg.kind != "none":
        _require_alike(wrapped.peft_config[TRAINED], cfg, loaded[-1])
    roles = {"policy": names, **({"reference": below} if fresh else {})}
    return Adapters(wrapped, source, roles, whole_embeddings=bool(whole))


def _beside(wrapped: Any, config: LoraConfig) -> LoraConfig:
    """A new adapter as it can stand on others: on the same experts, which PEFT asks for."""
    below = wrapped.peft_config.values() if wrapped is not None else ()
    for other in below:
        if other.target_parameters and config.target_parameters:
            config.target_parameters = list(other.target_parameters)
    return config


def _add(model: Any, wrapped: Any, name: str, config: PeftConfig) -> Any:
    with warnings.catch_warnings():
        # PEFT asks transformers for checkpointing by a name that is being replaced
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        # a rank for experts counts, although PEFT looks for it among the modules
        warnings.filterwarnings("ignore", ".*_pattern keys did not match", RuntimeWarning)
        # the base is named when the adapter is saved, not here
        warnings.filterwarnings("ignore", ".*`base_model_name_or_path` was renamed", UserWarning)
        if wrapped is None:
            wrapped = get_peft_model(model, config, adapter_name=name)
        else:
            wrapped.add_adapter(name, config)
    require_rows_tied(model)
    return wrapped


def _load(model: Any, wrapped: Any, name: str, folder: Path, new_tokens: Sequence[int] = ()) -> Any:
    """Put a saved adapter on the base, all of it or none; with rows for new tokens.

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
        config.task_type = peft_task(
            model
        )  # a reward model can start from a language model's adapter
        add_token_rows(config, model, new_tokens)
        wrapped = _add(model, wrapped, name, config)
        _require_whole_output(model, folder)
        expected = get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=True)
        stored = with_rows_of_base(load_file(file), expected, model)
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


def _require_whole_output(model: Any, folder: Path) -> None:
    """Refuse a saved adapter on an output layer that is packed here.

    Raises:
        ModelError: names the adapter.
    """
    layer = model.get_output_embeddings()
    wrapped = isinstance(layer, BaseTunerLayer | ModulesToSaveWrapper)
    if wrapped and packed_weight(layer) is not None:
        raise ModelError(
            f"quant.output_layer: got true, and the adapter in {folder} has a part on the output "
            "layer, which must stay whole for it. Try quant.output_layer=false"
        )


def _new_heads(state: State) -> dict[str, torch.Tensor]:
    """The head as the base has it: a language model's adapter brings none."""
    return {key: value for key, value in state.items() if key.endswith(f".{HEAD}.weight")}


def _require_fit(folder: Path, stored: State, expected: State, own: Iterable[str]) -> None:
    has = {key: tuple(value.shape) for key, value in stored.items()}
    needs = {key: tuple(value.shape) for key, value in expected.items()}
    missing = [key for key in own if key not in has and ("lora_" in key or TOKEN_ROWS in key)]
    other = [key for key in has if has[key] != needs.get(key)]
    if missing or other:
        key = (missing or other)[0]
        raise ModelError(
            f"model.path: the adapter in {folder} was made for another base: {key} is "
            f"{has.get(key, 'not there')}, and this base needs {needs.get(key, 'no such')}"
        )


def _no_room(folder: Path) -> ModelError:
    return ModelError(
        f"adapter.start: the adapter in {folder} has whole embeddings beside its matrices, and "
        "this run adds tokens to the tokenizer, whose rows would be trained apart from those. "
        "Try adapter.start=merge"
    )


def _require_alike(found: Any, cfg: AdapterConfig, folder: Path) -> None:
    """Refuse to go on with an adapter that is not the one the config describes."""
    lines = unlike_adapter(cfg, found.to_dict(), AdapterConfig(), str(folder))
    if lines:
        raise ModelError("\n".join(lines))

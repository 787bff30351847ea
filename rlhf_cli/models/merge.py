"""Adapters added to the weights they stand on."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig

from rlhf_cli.models.attach import attach
from rlhf_cli.models.base import SHAPES, adopt_ends, load_base, scorer_fit
from rlhf_cli.models.config import AdapterConfig, ModelConfig
from rlhf_cli.models.source import Source


def load_unmerged(cfg: ModelConfig, source: Source, tokenizer: Any) -> Any:
    """The whole fp32 base with its adapters on it, as PEFT holds them."""
    shape = SHAPES[source.kind]
    fit = scorer_fit(source) if source.kind == "reward_model" else None
    model = load_base(cfg, source.folder, tokenizer, shape, adapters=source.adapters, fit=fit)
    adopt_ends(model, source)
    return attach(model, source, AdapterConfig(), 0).model.eval()


def merge(unmerged: Any) -> Any:
    """A plain transformers model in which the adapters are part of the weights."""
    return unmerged.merge_and_unload()


def base_dtype(cfg: ModelConfig, source: Source) -> torch.dtype:
    """The type that the base's `config.json` names for its weights; fp32 where it names none."""
    config = AutoConfig.from_pretrained(source.folder, trust_remote_code=cfg.trust_remote_code)
    named = config.dtype or config.get_text_config().dtype
    return named if isinstance(named, torch.dtype) else torch.float32


def round_weights(model: Any, dtype: torch.dtype) -> None:
    """Round what is saved of a model to the values of a type, and leave it in the type it has.

    Forward passes then differ from those before by the weights alone, not by arithmetic in another
    type, which in bf16 differs as much. Buffers that are computed at load are not saved, so they
    stay.
    """
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(dtype))

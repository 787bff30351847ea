"""Adapters added to the weights they stand on."""

from __future__ import annotations

from typing import Any

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

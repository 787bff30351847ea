"""The base that a run makes for itself: random weights, or weights with an adapter merged in.

What stands on frozen weights is of use only where those can be found again, so they are written
into the run's folder first.

Adapters added to the weights they stand on.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from rlhf_cli.context import RunContext, say
from rlhf_cli.models.base_model import (
    AUTO_CLASSES,
    adopt_stop_tokens,
    allowed_reward_mismatch,
    build_random_model,
    load_base_model,
)
from rlhf_cli.models.config import AdapterConfig, LoadConfig, ModelConfig
from rlhf_cli.models.resolve import LOCAL_BASE, ModelSource, resolve_model


def prepare_base(cfg: LoadConfig, tokenizer: Any, ctx: RunContext) -> ModelSource:
    """The source of a run's model, with weights that are nowhere else written to disk.

    Returns:
        A source without a base where training starts from random weights and keeps none of them.
    """
    scratch = cfg.model.from_scratch
    found = ModelSource("") if scratch else resolve_model(cfg.model)
    merges = bool(found.adapters) and cfg.adapter.start == "merge"
    if not merges and (not scratch or cfg.adapter.kind == "none"):
        return found
    target = ctx.out / LOCAL_BASE
    ctx.ranks.on_main(lambda: _write(target, cfg, found, tokenizer, ctx.seed))
    return ModelSource(
        str(target), quant=found.quant, double=found.double, output_layer=found.output_layer
    )


def _write(target: Path, cfg: LoadConfig, found: ModelSource, tokenizer: Any, seed: int) -> None:
    """All of it or nothing; a run that goes on has it already."""
    if target.is_dir():
        return
    if found.adapters:
        made = merge_adapters(load_with_adapters(cfg.model, found, tokenizer))
    else:
        made = build_random_model(cfg.model, tokenizer, seed)
    partial = target.with_suffix(".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    made.save_pretrained(partial)
    partial.rename(target)
    say(f"base: {found.describe() or 'random weights'} -> {target}")


def load_with_adapters(cfg: ModelConfig, source: ModelSource, tokenizer: Any) -> Any:
    """The whole fp32 base with its adapters on it, as PEFT holds them."""
    from rlhf_cli.models.attach_adapters import attach_adapters  # PEFT: a second to import

    shape = AUTO_CLASSES[source.kind]
    fit = allowed_reward_mismatch(source) if source.kind == "reward_model" else None
    model = load_base_model(cfg, source.folder, tokenizer, shape, adapters=source.adapters, fit=fit)
    adopt_stop_tokens(model, source)
    return attach_adapters(model, source, AdapterConfig(), 0).model.eval()


def merge_adapters(unmerged: Any) -> Any:
    """A plain transformers model in which the adapters are part of the weights."""
    return unmerged.merge_and_unload()


def base_dtype(cfg: ModelConfig, source: ModelSource) -> torch.dtype:
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

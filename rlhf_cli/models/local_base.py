"""The base that a run writes for itself, and the merge of adapters into their base.

An adapter is of use only with its frozen base. Where that base exists nowhere on disk, random
weights or weights with an adapter merged in, it is written into the run's folder before training.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from rlhf_cli.console import logger
from rlhf_cli.context import RunContext
from rlhf_cli.models.base_model import (
    BaseOptions,
    adopt_stop_tokens,
    allowed_reward_mismatch,
    base_quantization,
    build_random_model,
    load_base_model,
)
from rlhf_cli.models.config import AdapterConfig, LoadConfig, ModelConfig
from rlhf_cli.models.quantize import set_eval_mode
from rlhf_cli.models.resolve import LOCAL_BASE, ModelSource, resolve_model
from rlhf_cli.models.stored_tensor import StoredTensor, defer
from rlhf_cli.models.weight_files import save_weights


def prepare_base(cfg: LoadConfig, tokenizer: Any, ctx: RunContext) -> ModelSource:
    """Resolve a run's model; write its base into the run's folder where it is nowhere on disk.

    Returns:
        A source without a base where random weights are trained fully, and none are kept.
    """
    scratch = cfg.model.from_scratch
    found = ModelSource("") if scratch else resolve_model(cfg.model)
    merges = bool(found.adapters) and cfg.adapter.start == "merge"
    if not merges and (not scratch or cfg.adapter.kind == "none"):
        return found
    target = ctx.out / LOCAL_BASE
    ctx.ranks.run_on_main(lambda: _write_base(target, cfg, found, tokenizer, ctx.seed))
    return ModelSource(
        str(target), quant=found.quant, double=found.double, output_layer=found.output_layer
    )


def _write_base(
    target: Path, cfg: LoadConfig, found: ModelSource, tokenizer: Any, seed: int
) -> None:
    """Write a base as a whole or not at all; a resumed run has it already."""
    if target.is_dir():
        return
    if found.adapters:
        base = merge_adapters(load_with_adapters(cfg.model, found, tokenizer))
    else:
        base = build_random_model(cfg.model, tokenizer, seed)
    partial = target.with_suffix(".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    save_weights(base, partial, torch.float32)
    partial.rename(target)
    logger.info(f"base: {found.describe() or 'random weights'} -> {target}")


def load_with_adapters(
    cfg: ModelConfig, source: ModelSource, tokenizer: Any, *, quantized: bool = False
) -> Any:
    """Load a base in fp32, with its adapters attached; return PEFT's model.

    The weights of the base stay in their files, unless they are quantized, which keeps them in
    memory.

    Args:
        cfg: of the model.
        source: the base and its adapters.
        tokenizer: of the model.
        quantized: quantize the base as it was when the adapters were trained.
    """
    from rlhf_cli.models.attach_adapters import attach_adapters  # PEFT: a second to import

    scores = source.kind == "reward_model"
    options = BaseOptions(
        kind=source.kind,
        adapters=source.adapters,
        quantization=base_quantization(source, torch.float32) if quantized else None,
        allowed=allowed_reward_mismatch(source) if scores else None,
        deferred=not quantized,
    )
    model = load_base_model(cfg, source.folder, tokenizer, options)
    adopt_stop_tokens(model, source)
    adapted = attach_adapters(model, source, AdapterConfig(), 0).model
    set_eval_mode(adapted)
    return adapted


def merge_adapters(adapted: Any) -> Any:
    """Add the adapters to the weights; return a plain transformers model.

    Where the weights of the base are still in their files, none is read: each is computed, by
    PEFT's own code, when it is read.
    """
    if any(isinstance(param, StoredTensor) for param in adapted.parameters()):
        defer(adapted, next(adapted.parameters()).device)
    merged = adapted.merge_and_unload()
    inputs, output = merged.get_input_embeddings(), merged.get_output_embeddings()
    if merged.config.tie_word_embeddings and output is not None:
        # PEFT compares the places in memory, which these weights do not have
        merged.config.tie_word_embeddings = output.weight is inputs.weight
    return merged


def base_dtype(cfg: ModelConfig, source: ModelSource) -> torch.dtype:
    """Read the type of the base's weights from its config.json; fp32 where that names none."""
    config = AutoConfig.from_pretrained(source.folder, trust_remote_code=cfg.trust_remote_code)
    named = config.dtype or config.get_text_config().dtype
    return named if isinstance(named, torch.dtype) else torch.float32


@contextmanager
def rounded(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """Round the saved tensors of a model to the values of a type, without a change of their type.

    Forward passes then differ from those before only by the weights, not by arithmetic in another
    type, which in bf16 differs as much. Buffers that are computed at load are not saved, and not
    rounded. Outside of the context the tensors are exact again.

    Args:
        model: its parameters are in their files, or computed from them.
        dtype: that is to be written.
    """
    own = model.state_dict(keep_vars=True)
    exact = {name: tensor.data for name, tensor in own.items() if tensor.is_floating_point()}
    for name, values in exact.items():
        own[name].data = values.to(dtype).to(values.dtype)
    try:
        yield
    finally:
        for name, values in exact.items():
            own[name].data = values

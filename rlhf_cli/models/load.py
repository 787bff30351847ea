"""Load a model by its role: policy, reward model, frozen model or generator.

Quantization, adapters, types and attention are decided here, and printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from rlhf_cli.console import logger, muted
from rlhf_cli.context import RunContext
from rlhf_cli.distributed.mesh import ShardMesh
from rlhf_cli.kernels.registry import choose
from rlhf_cli.memory.phase import phase
from rlhf_cli.models.attention import (
    PADDED,
    describe_attention,
    padded_attention,
    require_attention,
)
from rlhf_cli.models.base_model import (
    BaseOptions,
    adopt_stop_tokens,
    allowed_reward_mismatch,
    base_quantization,
    build_random_model,
    describe_weights,
    is_causal,
    load_base_model,
)
from rlhf_cli.models.checks import AllowedMismatch
from rlhf_cli.models.config import (
    AdapterConfig,
    LoadConfig,
    ModelConfig,
    QuantConfig,
    TrainedModelConfig,
)
from rlhf_cli.models.context_parallel import require_exact_positions
from rlhf_cli.models.liger import apply_liger
from rlhf_cli.models.local_base import prepare_base
from rlhf_cli.models.packed_weights import can_pack_later
from rlhf_cli.models.parameters import (
    cast_for_compute,
    cast_params,
    freeze_modules,
    freeze_non_text_modules,
    without_parameter_gradients,
)
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.probes import probe
from rlhf_cli.models.quantize import (
    has_quantized_weight,
    is_quantized,
    require_shardable,
    set_eval_mode,
)
from rlhf_cli.models.resolve import ModelSource, resolve_model
from rlhf_cli.models.reward_model import RewardModel
from rlhf_cli.models.sharding import shard_model
from rlhf_cli.models.stored_tensor import defer
from rlhf_cli.models.stored_weights import shard_and_read
from rlhf_cli.models.vocabulary import find_support
from rlhf_cli.models.wrapper import ModelWrapper, read_head, without_dropout

Role = TypeVar("Role", Policy, RewardModel)


@dataclass(frozen=True)
class LoadInputs:
    """What a model is loaded with beside its config.

    Attributes:
        tokenizer: gives the size of random weights, and of an extended vocabulary.
        ctx: device, compute type and seed; a base that the run makes is written to its folder.
        new_tokens: ids that were added to the tokenizer, whose embeddings are to be learned.
    """

    tokenizer: Any
    ctx: RunContext
    new_tokens: Sequence[int] = ()


def load_policy(cfg: LoadConfig, inputs: LoadInputs) -> Policy:
    """Load the language model that is trained; see `load_trainable`."""
    return load_trainable(Policy, cfg, inputs)


def load_reward_model(cfg: LoadConfig, inputs: LoadInputs, *, new_head: bool = True) -> RewardModel:
    """Load the reward model that is trained; see `load_trainable`.

    Args:
        cfg: of the model.
        inputs: tokenizer and run.
        new_head: add a random head to a model without one.
    """
    return load_trainable(RewardModel, cfg, inputs, new_head=new_head)


@phase("load")
def load_trainable(
    role: type[Role], cfg: LoadConfig, inputs: LoadInputs, *, new_head: bool = False
) -> Role:
    """Load a model to train: on the device, without dropout, probed.

    Trained parameters are fp32; frozen ones are read in the compute type, or quantized.

    Args:
        role: class of the result.
        cfg: the weights, the adapters, and the quantization of frozen weights.
        inputs: tokenizer and run.
        new_head: a reward model's head may be missing; it is then random.

    Raises:
        ModelError: it cannot be loaded, does not fit the tokenizer, or fails a probe.
    """
    ctx = inputs.ctx
    source = prepare_base(cfg, inputs.tokenizer, ctx)
    adapted = bool(source.adapters) or cfg.adapter.kind != "none"
    dtype = ctx.compute if adapted else torch.float32
    allowed = allowed_reward_mismatch(source, new_head=new_head) if role is RewardModel else None
    quantized = _choose_quantization(source, cfg.quant, role.kind)
    if ctx.mesh is not None:
        require_shardable(quantized.quant, cfg.model.path)
    model = _load_weights(role.kind, cfg, quantized, inputs, dtype, allowed)
    loaded = _wrap(role, model, cfg, source, inputs)
    for param in loaded.parameters():
        if param.requires_grad:  # PEFT copies fully trained layers in the base's type
            param.data = param.data.float()
    cast_params((p for p in loaded.parameters() if not p.requires_grad), ctx.compute)
    if isinstance(cfg.model, TrainedModelConfig) and cfg.model.freeze:
        freeze_modules(loaded.model, cfg.model.freeze, ctx.compute)
    if ctx.mesh is not None:
        _shard(loaded, ctx.mesh, ctx.compute)
    _set_attention(loaded, cfg, ctx.compute)
    _report(loaded, source.describe() or describe_weights(cfg.model), ctx.compute)
    return loaded


@phase("load")
def load_frozen(
    role: type[Role], cfg: LoadConfig, inputs: LoadInputs, *, keeps_new_tokens: bool = False
) -> Role:
    """Load a model that is only evaluated: frozen, in the compute type, probed.

    Args:
        role: class of the result.
        cfg: the weights, and their quantization.
        inputs: tokenizer and run.
        keeps_new_tokens: give the tokenizer's new tokens embeddings, as a trained model has; else
            they are left out, since nothing learns them here.

    Raises:
        ModelError: it cannot be loaded, does not fit the tokenizer, or fails a probe.
    """
    if not keeps_new_tokens:
        inputs = replace(inputs, new_tokens=())
    ctx = inputs.ctx
    source = prepare_base(cfg, inputs.tokenizer, ctx)
    allowed = allowed_reward_mismatch(source) if role is RewardModel else None
    quantized = _choose_quantization(source, cfg.quant, role.kind)
    if ctx.mesh is not None:
        require_shardable(quantized.quant, cfg.model.path)
    model = _load_weights(role.kind, cfg, quantized, inputs, ctx.compute, allowed)
    with muted():  # mute log lines that apply to trained models only
        loaded = _wrap(role, model, cfg, source, inputs)
        cast_params(loaded.requires_grad_(False).parameters(), ctx.compute)
        if ctx.mesh is not None:
            _shard(loaded, ctx.mesh, ctx.compute)
        _set_attention(loaded, cfg, ctx.compute)
    set_eval_mode(loaded)
    count = sum(p.numel() for p in loaded.parameters())
    logger.info(f"model: {describe_weights(cfg.model)}, {count:,} parameters, {_layout(loaded)}")
    return loaded


@phase("load")
def load_generator(cfg: ModelConfig, quant: QuantConfig, inputs: LoadInputs) -> Any:
    """Load a transformers model that only generates: in the compute type, with padded attention.

    Args:
        cfg: of the model.
        quant: quantization of its base.
        inputs: tokenizer and run; its new tokens are left out.

    Raises:
        ModelError: it cannot be loaded.
    """
    inputs = replace(inputs, new_tokens=())
    ctx = inputs.ctx
    source = ModelSource("") if cfg.from_scratch else resolve_model(cfg)
    quantized = _choose_quantization(source, quant, Policy.kind)
    model = _load_weights(Policy.kind, LoadConfig(model=cfg), quantized, inputs, ctx.compute)
    if source.adapters:
        from rlhf_cli.models.attach_adapters import attach_adapters  # PEFT: a second to import

        adopt_stop_tokens(model, source)
        model = attach_adapters(model, source, AdapterConfig(), ctx.seed).model
    model = model.to(ctx.device).requires_grad_(False)
    set_eval_mode(model)
    cast_params(model.parameters(), ctx.compute)
    model.set_attn_implementation(padded_attention(model))
    logger.info(f"model: {source.describe() or describe_weights(cfg)}")
    return model


def _choose_quantization(source: ModelSource, quant: QuantConfig, kind: str) -> ModelSource:
    """Return the source with the quantization of the config; `auto` keeps the source's own."""
    if quant.kind != "auto":
        source = replace(
            source, quant=quant.kind, double=quant.double, output_layer=quant.output_layer
        )
    # a reward model has no output layer
    return replace(source, output_layer=source.output_layer and kind == Policy.kind)


def _load_weights(
    kind: str,
    cfg: LoadConfig,
    source: ModelSource,
    inputs: LoadInputs,
    dtype: torch.dtype,
    allowed: AllowedMismatch | None = None,
) -> Any:
    """Load the base of a source, quantized as the source says, or build random weights."""
    ctx = inputs.ctx
    if not source.base:
        model = build_random_model(cfg.model, inputs.tokenizer, ctx.seed, kind)
        if ctx.mesh is not None:
            defer(model, ctx.device)
        return model
    options = BaseOptions(
        kind=kind,
        new_tokens=inputs.new_tokens,
        adapters=source.adapters,
        quantization=base_quantization(source, ctx.compute),
        dtype=dtype,
        device=ctx.device,
        allowed=allowed,
        seed=ctx.seed,
        deferred=ctx.mesh is not None
        and (source.quant == "none" or can_pack_later(cfg.adapter, source.adapters)),
    )
    return load_base_model(cfg.model, source.folder, inputs.tokenizer, options)


def _wrap(
    role: type[Role], model: Any, cfg: LoadConfig, source: ModelSource, inputs: LoadInputs
) -> Role:
    """Wrap a model for its role: on the device, in train mode, with adapters in fp32."""
    ctx = inputs.ctx
    adopt_stop_tokens(model, source)
    disable_dropout(model)
    freeze_non_text_modules(model)
    apply_liger(model, cfg.kernels, ctx.device)
    adapters = None
    if source.adapters or cfg.adapter.kind != "none":
        from rlhf_cli.models.attach_adapters import attach_adapters  # PEFT: a second to import

        adapters = attach_adapters(model, source, cfg.adapter, ctx.seed, inputs.new_tokens)
    quantized = has_quantized_weight(model.get_output_embeddings())
    implementation, reason = choose(cfg.kernels, ctx.device, quantized=quantized)
    if role is Policy:
        logger.info(f"logprobs: {implementation.name} ({reason})")
    flat = cfg.model.attention not in PADDED and is_causal(model)
    require_attention(cfg.model, ctx, flat=flat)
    wrapped = model if adapters is None else adapters.model
    loaded = role(wrapped.to(ctx.device), implementation, flat=flat, adapters=adapters)
    loaded.context = ctx.ranks.context
    require_exact_positions(loaded.model, loaded.context)
    if isinstance(loaded, Policy):
        loaded.support = find_support(inputs.tokenizer, len(read_head(loaded.model).weight))
    # before any pass: in eval mode bitsandbytes repacks 4-bit weights for a kernel without
    # gradients
    return loaded.train()


def _shard(loaded: ModelWrapper, mesh: ShardMesh, compute: torch.dtype) -> None:
    """Divide the weights among the processes; each reads its own rows from the files."""
    shard_and_read(loaded, partial(shard_model, mesh=mesh, compute=compute), mesh.shard_device)


def _set_attention(loaded: ModelWrapper, cfg: LoadConfig, compute: torch.dtype) -> None:
    """Set the attention that the config asks for, and probe the model.

    Raises:
        KernelError: the layers that `kernels` asks for are not exact.
        ModelError: the attention is not exact.
    """
    attention = cfg.model.attention
    if attention not in ("auto", "per_row"):
        loaded.model.set_attn_implementation(attention)
    with (
        without_dropout(loaded),
        cast_for_compute(loaded, compute),
        without_parameter_gradients(loaded),
    ):
        probe(
            loaded,
            may_fall_back=attention == "auto" and loaded.context.world_size == 1,
            may_drop_layers=cfg.kernels == "auto",
        )


def _report(loaded: ModelWrapper, name: str, compute: torch.dtype) -> None:
    """Print what is trained, what is frozen and its size, the layout and the attention."""
    params = list(loaded.parameters())
    trained = [p for p in params if p.requires_grad]
    frozen = sum(p.numel() * p.element_size() for p in params if not p.requires_grad)
    count = sum(p.numel() for p in trained)
    summary = f"{count:,} parameters trained"
    if loaded.adapters is not None:
        quantized = " (quantized)" if is_quantized(loaded.model) else ""
        kind = loaded.adapters.describe()
        summary += f" as {kind}, {frozen / 1e6:,.1f} MB frozen{quantized}"
    attention = describe_attention(loaded.model, loaded.device, compute)
    role = loaded.kind.replace("causal_lm", "policy").replace("_", " ")
    logger.info(f"{role}: {name}, {summary}, {_layout(loaded)}, attention {attention}")


def _layout(loaded: ModelWrapper) -> str:
    return "flat rows" if loaded.flat else "padded rows"


def enable_activation_checkpointing(policy: ModelWrapper) -> None:
    """Keep one vector a layer and token for the backward pass, and recompute the rest."""
    model = policy.model
    arguments: dict[str, Any] = {"use_reentrant": False}  # the other kind loses adapters' gradients
    if policy.adapters is not None:
        arguments["context_fn"] = policy.adapters.recompute_context
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=arguments)
    else:  # transformers before 5.20
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout rate to 0, so that the same rows always give the same log-probs."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):  # Llama's attention_dropout
                setattr(module, name, 0.0)

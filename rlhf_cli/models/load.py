"""Load a model for its role, and say what was loaded and how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from rlhf_cli.context import RunContext, say, silence
from rlhf_cli.kernels.registry import choose
from rlhf_cli.models.attention import (
    PADDED,
    describe_attention,
    padded_attention,
    require_attention,
)
from rlhf_cli.models.base_model import (
    AUTO_CLASSES,
    adopt_stop_tokens,
    allowed_reward_mismatch,
    build_random_model,
    describe_weights,
    is_causal,
    load_base_model,
)
from rlhf_cli.models.checks import CAUSAL_LM, AllowedMismatch
from rlhf_cli.models.config import (
    AdapterConfig,
    LoadConfig,
    ModelConfig,
    QuantConfig,
)
from rlhf_cli.models.liger import apply_liger
from rlhf_cli.models.local_base import prepare_base
from rlhf_cli.models.parameters import (
    cast_for_compute,
    cast_params,
    freeze_non_text_modules,
    without_parameter_gradients,
)
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.probes import probe
from rlhf_cli.models.quantize import (
    is_quantized,
    quantization_config,
    quantized_weight,
    set_eval_mode,
)
from rlhf_cli.models.resolve import ModelSource, resolve_model
from rlhf_cli.models.reward_model import RewardModel
from rlhf_cli.models.vocabulary import find_support
from rlhf_cli.models.wrapper import ModelWrapper, read_head, without_dropout

Role = TypeVar("Role", Policy, RewardModel)


def load_policy(
    cfg: LoadConfig, tokenizer: Any, ctx: RunContext, new_tokens: Sequence[int] = ()
) -> Policy:
    """The language model that is trained; as `load_trained`."""
    return load_trainable(Policy, cfg, tokenizer, ctx, new_tokens)


def load_reward_model(
    cfg: LoadConfig,
    tokenizer: Any,
    ctx: RunContext,
    new_tokens: Sequence[int] = (),
    *,
    new_head: bool = True,
) -> RewardModel:
    """The reward model that is trained, with a new head on what is not one yet if that may be."""
    return load_trainable(RewardModel, cfg, tokenizer, ctx, new_tokens, new_head=new_head)


def load_trainable(
    role: type[Role],
    cfg: LoadConfig,
    tokenizer: Any,
    ctx: RunContext,
    new_tokens: Sequence[int] = (),
    *,
    new_head: bool = False,
) -> Role:
    """A model to train: on the device, dropout off, probed.

    What is trained is fp32; what is frozen is read in the compute type, or in fewer bits.

    Args:
        role: what it is to give.
        cfg: which weights, what is trained beside them, how frozen ones are held.
        tokenizer: decides the size of random weights, and of a grown vocabulary.
        ctx: device, compute type, seed; the run's own base is in its folder.
        new_tokens: ids that were added to the tokenizer and have to be learned.
        new_head: a reward model's head may be missing; it is then random.

    Raises:
        ModelError: it cannot be loaded, does not fit the tokenizer, or fails a probe.
    """
    source = prepare_base(cfg, tokenizer, ctx)
    adapted = bool(source.adapters) or cfg.adapter.kind != "none"
    dtype = ctx.compute if adapted else torch.float32
    fit = allowed_reward_mismatch(source, new_head=new_head) if role is RewardModel else CAUSAL_LM
    model = _weights(role, cfg.model, cfg.quant, source, tokenizer, ctx, new_tokens, dtype, fit)
    loaded = _prepare(role, model, cfg, source, tokenizer, ctx, new_tokens)
    for param in loaded.parameters():
        if param.requires_grad:  # PEFT copies layers that are trained whole in the base's type
            param.data = param.data.float()
    cast_params((p for p in loaded.parameters() if not p.requires_grad), ctx.compute)
    set_attention(loaded, cfg, ctx.compute)
    _tell(loaded, source.describe() or describe_weights(cfg.model), ctx.compute)
    return loaded


def load_frozen(role: type[Role], cfg: LoadConfig, tokenizer: Any, ctx: RunContext) -> Role:
    """A model that is only measured: all of it frozen and in the compute type, and probed."""
    source = prepare_base(cfg, tokenizer, ctx)
    fit = allowed_reward_mismatch(source) if role is RewardModel else CAUSAL_LM
    model = _weights(role, cfg.model, cfg.quant, source, tokenizer, ctx, (), ctx.compute, fit)
    with silence():  # of training it
        loaded = _prepare(role, model, cfg, source, tokenizer, ctx)
        cast_params(loaded.requires_grad_(False).parameters(), ctx.compute)
        set_attention(loaded, cfg, ctx.compute)
    set_eval_mode(loaded)
    count = sum(p.numel() for p in loaded.parameters())
    layout = "flat rows" if loaded.flat else "padded rows"
    say(f"model: {describe_weights(cfg.model)}, {count:,} parameters, {layout}")
    return loaded


def _prepare(
    role: type[Role],
    model: Any,
    cfg: LoadConfig,
    source: ModelSource,
    tokenizer: Any,
    ctx: RunContext,
    new_tokens: Sequence[int] = (),
) -> Role:
    """A model in its role, on the device, in train mode, with its adapters in fp32."""
    adopt_stop_tokens(model, source)
    disable_dropout(model)
    freeze_non_text_modules(model)
    apply_liger(model, cfg.kernels, ctx.device)
    adapters = None
    if source.adapters or cfg.adapter.kind != "none":
        from rlhf_cli.models.attach_adapters import attach_adapters

        adapters = attach_adapters(model, source, cfg.adapter, ctx.seed, new_tokens)
    packed = quantized_weight(model.get_output_embeddings()) is not None
    implementation, reason = choose(cfg.kernels, ctx.device, packed=packed)
    if role is Policy:
        say(f"logprobs: {implementation.name} ({reason})")
    flat = cfg.model.attention not in PADDED and is_causal(model)
    require_attention(cfg.model, ctx, flat=flat)
    wrapped = model if adapters is None else adapters.model
    loaded = role(wrapped.to(ctx.device), implementation, flat=flat, adapters=adapters)
    if isinstance(loaded, Policy):
        loaded.support = find_support(tokenizer, len(read_head(loaded.model).weight))
    # before any pass: in eval mode bitsandbytes packs 4-bit weights for a kernel without gradients
    return loaded.train()


def load_generator(cfg: ModelConfig, quant: QuantConfig, tokenizer: Any, ctx: RunContext) -> Any:
    """A model that only writes: in the compute type, in eval mode, with padded attention."""
    source = ModelSource("") if cfg.from_scratch else resolve_model(cfg)
    model = _weights(Policy, cfg, quant, source, tokenizer, ctx, (), ctx.compute, CAUSAL_LM)
    if source.adapters:
        from rlhf_cli.models.attach_adapters import attach_adapters

        adopt_stop_tokens(model, source)
        model = attach_adapters(model, source, AdapterConfig(), ctx.seed).model
    model = model.to(ctx.device).requires_grad_(False)
    set_eval_mode(model)
    cast_params(model.parameters(), ctx.compute)
    model.set_attn_implementation(padded_attention(model))
    say(f"model: {source.describe() or describe_weights(cfg)}")
    return model


def _weights(
    role: type[ModelWrapper],
    cfg: ModelConfig,
    quant: QuantConfig,
    source: ModelSource,
    tokenizer: Any,
    ctx: RunContext,
    new_tokens: Sequence[int],
    dtype: torch.dtype,
    fit: AllowedMismatch,
) -> Any:
    """The base in a type, packed as the configuration or the adapter on it says."""
    shape = AUTO_CLASSES[role.kind]
    if not source.base:
        return build_random_model(cfg, tokenizer, ctx.seed, shape)
    kind = source.quant if quant.kind == "auto" else quant.kind
    double = source.double if quant.kind == "auto" else quant.double
    output = source.output_layer if quant.kind == "auto" else quant.output_layer
    output = output and role is Policy  # a reward model has none
    compute = ctx.compute
    packed = (
        None if kind == "none" else quantization_config(kind, double, compute, output_layer=output)
    )
    return load_base_model(
        cfg,
        source.folder,
        tokenizer,
        shape,
        new_tokens=new_tokens,
        adapters=source.adapters,
        quantized=packed,
        dtype=dtype,
        device=ctx.device,
        fit=fit,
        seed=ctx.seed,
    )


def _tell(policy: ModelWrapper, name: str, compute: torch.dtype) -> None:
    """One line: what is trained, what is frozen, and how much memory each takes."""
    params = list(policy.parameters())
    trained = [p for p in params if p.requires_grad]
    frozen = sum(p.numel() * p.element_size() for p in params if not p.requires_grad)
    count = sum(p.numel() for p in trained)
    held = f"{count:,} parameters trained"
    if policy.adapters is not None:
        packed = " (quantized)" if is_quantized(policy.model) else ""
        kind = policy.adapters.describe()
        held += f" as {kind}, {frozen / 1e6:,.1f} MB frozen{packed}"
    layout = "flat rows" if policy.flat else "padded rows"
    attention = describe_attention(policy.model, policy.device, compute)
    said = policy.kind.replace("causal_lm", "policy").replace("_", " ")
    say(f"{said}: {name}, {held}, {layout}, attention {attention}")


def enable_activation_checkpointing(policy: ModelWrapper) -> None:
    """Keep one vector a layer and token for the backward pass and compute the rest again."""
    model = policy.model
    arguments: dict[str, Any] = {"use_reentrant": False}  # the other kind loses adapters' gradients
    if policy.adapters is not None:
        arguments["context_fn"] = policy.adapters.recompute_context
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=arguments)
    else:  # transformers before 5.20
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)


def disable_dropout(model: nn.Module) -> None:
    """Off everywhere: the same rows then always give the same log-probs."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):  # Llama's attention_dropout
                setattr(module, name, 0.0)


def context_length(model: Any) -> int | None:
    """Longest row that the model's positions allow, where its config says."""
    config = model.config.get_text_config()
    length = getattr(config, "max_position_embeddings", None)
    return int(length) - _first_position(model) if length and length > 0 else None  # XLNet: -1


def _first_position(model: Any) -> int:
    """RoBERTa and its kin count positions from behind that of padding."""
    for name, module in model.named_modules():
        if (
            name.endswith("position_embeddings")
            and getattr(module, "padding_idx", None) is not None
        ):
            return int(module.padding_idx) + 1
    return 0


def set_attention(loaded: ModelWrapper, cfg: LoadConfig, compute: torch.dtype) -> None:
    """Let a model compute with the attention that is asked for, and probe it.

    Raises:
        KernelError: with the layers that are asked for, it does not give what it gives by itself.
        ModelError: nor with the attention that is.
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
            may_fall_back=attention == "auto",
            may_drop_layers=cfg.kernels == "auto",
        )

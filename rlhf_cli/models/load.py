"""Load a model for its role, and say what was loaded and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from rlhf_cli.context import RunContext, say
from rlhf_cli.errors import ModelError
from rlhf_cli.kernels.registry import choose
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.policy import Policy, padded_attention
from rlhf_cli.models.probes import probe
from rlhf_cli.models.source import (
    DEFAULT_ARCHITECTURE,
    loading,
    locate,
    require_config,
    require_safe_weights,
)

disable_progress_bar()  # one line of ours says what was loaded


def load_policy(cfg: ModelConfig, tokenizer: Any, kernels: str, ctx: RunContext) -> Policy:
    """The model that is trained: fp32 weights on the device, dropout off, probed.

    Raises:
        ModelError: it cannot be loaded, does not fit the tokenizer, or fails a probe.
    """
    model = load_causal_lm(cfg, tokenizer, torch.float32, ctx.seed).to(ctx.device)
    disable_dropout(model)
    implementation, reason = choose(kernels, ctx.device)
    say(f"logprobs: {implementation.name} ({reason})")
    policy = Policy(model, implementation, flat=cfg.attention in ("auto", "per_row"))
    if cfg.attention not in ("auto", "per_row"):
        model.set_attn_implementation(cfg.attention)
    probe(policy, may_fall_back=cfg.attention == "auto")
    layout = "flat rows" if policy.flat else "padded rows"
    count = sum(p.numel() for p in policy.parameters())
    attention = model.config._attn_implementation.removeprefix("rlhf_")
    say(f"policy: {describe(cfg)}, {count:,} parameters, {layout}, attention {attention}")
    return policy


def load_generator(cfg: ModelConfig, tokenizer: Any, ctx: RunContext) -> Any:
    """A model that only writes: in the compute type, in eval mode, with padded attention."""
    model = load_causal_lm(cfg, tokenizer, ctx.compute, ctx.seed).to(ctx.device).eval()
    model.set_attn_implementation(padded_attention(model))
    say(f"model: {describe(cfg)}")
    return model


def load_causal_lm(cfg: ModelConfig, tokenizer: Any, dtype: torch.dtype, seed: int) -> Any:
    """A transformers causal language model, from weights or at random."""
    model = _from_scratch(cfg, tokenizer, seed) if cfg.from_scratch else _pretrained(cfg)
    # a repetition penalty or top-k that came with the weights would change what is sampled
    ends = model.generation_config.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=ends)
    size = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > size:
        raise ModelError(
            f"model.tokenizer: {len(tokenizer)} tokens, but the model embeds {size}; "
            "use the tokenizer that the model was trained with"
        )
    return model.to(dtype) if dtype != torch.float32 else model


def _pretrained(cfg: ModelConfig) -> Any:
    source = locate(cfg.path)
    require_config(source)
    if Path(source).is_dir():
        require_safe_weights(Path(source))
    with loading("model.path", cfg.path, hub=not Path(source).is_dir()):
        return AutoModelForCausalLM.from_pretrained(
            source,
            revision=cfg.revision or "main",
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=cfg.trust_remote_code,
        )


def _from_scratch(cfg: ModelConfig, tokenizer: Any, seed: int) -> Any:
    """Random weights in the shape that the config says, with the tokenizer's size and ids."""
    key = "model.path" if cfg.path else "model.architecture"
    hub = bool(cfg.path) and not Path(locate(cfg.path)).is_dir()
    with loading(key, cfg.path or describe(cfg), hub=hub), torch.random.fork_rng():
        shape = _shape(cfg)
        shape.vocab_size = len(tokenizer)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(shape, name, getattr(tokenizer, name))
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(shape, trust_remote_code=cfg.trust_remote_code)
        return model.float()


def _shape(cfg: ModelConfig) -> Any:
    """The transformers config of a model that starts from nothing."""
    if cfg.path:
        source = locate(cfg.path)
        require_config(source)
        return AutoConfig.from_pretrained(
            source, revision=cfg.revision or "main", trust_remote_code=cfg.trust_remote_code
        )
    fields = dict(cfg.architecture or DEFAULT_ARCHITECTURE)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def recompute_activations(policy: Policy) -> None:
    """Keep one vector a layer and token for the backward pass and compute the rest again."""
    model = policy.model
    arguments = {"use_reentrant": False}  # the reentrant kind loses gradients of adapters
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
    return int(length) if length else None


def describe(cfg: ModelConfig) -> str:
    """Where the weights come from, in words."""
    if not cfg.from_scratch:
        return cfg.path
    kind = (cfg.architecture or DEFAULT_ARCHITECTURE)["model_type"]
    return f"random weights in the shape of {cfg.path or kind}"

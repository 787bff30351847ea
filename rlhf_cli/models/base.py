"""Whole weights: from a folder or the hub, or at random; with the tokenizer's vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from rlhf_cli.errors import ModelError
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.loading import loading, require_config, require_safe_weights
from rlhf_cli.models.source import DEFAULT_ARCHITECTURE, Source, locate

disable_progress_bar()  # one line of ours says what was loaded


def load_base(
    cfg: ModelConfig,
    base: str,
    tokenizer: Any,
    *,
    new_tokens: Sequence[int] = (),
    quantized: BitsAndBytesConfig | None = None,
    device: torch.device | None = None,
) -> Any:
    """A transformers causal language model with the weights of a folder or hub id.

    Args:
        cfg: how it is loaded.
        base: where the weights are.
        tokenizer: must not have more tokens than the model embeds, new ones apart.
        new_tokens: ids that the model has not seen; the mean of all embeddings stands for each.
        quantized: how the weights of linear layers are packed.
        device: where packed weights go; others stay on the CPU.

    Raises:
        ModelError: it cannot be loaded, or does not fit the tokenizer.
    """
    require_config(base)
    if Path(base).is_dir():
        require_safe_weights(Path(base))
    packed = {"quantization_config": quantized, "device_map": {"": str(device)}}
    with loading("model.path", base, hub=not Path(base).is_dir()):
        model = AutoModelForCausalLM.from_pretrained(
            base,
            revision=cfg.revision or "main",
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=cfg.trust_remote_code,
            **(packed if quantized else {}),
        )
    forget_sampling(model)
    fit_vocabulary(model, tokenizer, new_tokens)
    return model


def random_base(cfg: ModelConfig, tokenizer: Any, seed: int) -> Any:
    """Random fp32 weights in the shape that the config says, with the tokenizer's size and ids.

    Raises:
        ModelError: there is no such shape.
    """
    key = "model.path" if cfg.path else "model.architecture"
    hub = bool(cfg.path) and not Path(locate(cfg.path)).is_dir()
    with loading(key, cfg.path or describe(cfg), hub=hub), torch.random.fork_rng():
        shape = _shape(cfg)
        shape.vocab_size = len(tokenizer)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(shape, name, getattr(tokenizer, name))
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(shape, trust_remote_code=cfg.trust_remote_code)
    forget_sampling(model)
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


def forget_sampling(model: Any) -> None:
    """Keep the end tokens alone: a penalty or top-k that came with it would change the sampling."""
    ends = model.generation_config.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=ends)


def adopt_ends(model: Any, source: Source) -> None:
    """Let a response end where it does for the adapter, if its folder says where."""
    if source.adapters and (source.adapters[-1] / "generation_config.json").is_file():
        learned = GenerationConfig.from_pretrained(source.adapters[-1])
        model.generation_config.eos_token_id = learned.eos_token_id


def fit_vocabulary(model: Any, tokenizer: Any, new_tokens: Sequence[int]) -> None:
    """Make room for new tokens, each with the mean of the embeddings before.

    Raises:
        ModelError: the tokenizer has more tokens than the model embeds, and they are not new.
    """
    size = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > size + len(new_tokens):
        raise ModelError(
            f"model.tokenizer: {len(tokenizer)} tokens, but the model embeds {size}; "
            "use the tokenizer that the model was trained with"
        )
    if len(tokenizer) > size:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if new_tokens:
        for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
            _fill_with_mean(layer.weight.data, list(new_tokens))


def _fill_with_mean(weight: torch.Tensor, rows: list[int]) -> None:
    known = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
    known[rows] = False
    weight[rows] = weight[known].mean(0)


def describe(cfg: ModelConfig) -> str:
    """Where the weights come from, in words."""
    if not cfg.from_scratch:
        return cfg.path
    kind = (cfg.architecture or DEFAULT_ARCHITECTURE)["model_type"]
    return f"random weights in the shape of {cfg.path or kind}"

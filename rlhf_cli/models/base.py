"""Whole weights: from a folder or the hub, or at random; with the tokenizer's vocabulary."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    GenerationConfig,
)

from rlhf_cli.console import logger
from rlhf_cli.context import forked_rng
from rlhf_cli.errors import ModelError
from rlhf_cli.models.checkpoint_keys import (
    HEADLESS,
    LANGUAGE_MODEL,
    NEW_SCORER,
    SCORER,
    Fit,
)
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.loading import (
    loading,
    require_config,
    require_one_stack,
    require_safe_weights,
    require_whole_weights,
)
from rlhf_cli.models.quantize import packs_output, require_own_output, require_packed_output
from rlhf_cli.models.reward_model import score_layer
from rlhf_cli.models.saved_embeddings import rows_of
from rlhf_cli.models.source import ADAPTER_WEIGHTS, DEFAULT_ARCHITECTURE, Source, locate
from rlhf_cli.models.vocabulary import describe_without_row, embedding_rows, vocabulary_size
from rlhf_cli.models.weights import load_weights


@dataclass(frozen=True)
class Shape:
    """What stands on the layers: a transformers auto class, and what it is to be told."""

    auto: Any
    options: Mapping[str, Any]


SHAPES = {
    "causal_lm": Shape(AutoModelForCausalLM, {}),
    "reward_model": Shape(AutoModelForSequenceClassification, {"num_labels": 1}),
}
"""By the kind of an artifact."""

LANGUAGE = SHAPES["causal_lm"]


def load_base(
    cfg: ModelConfig,
    base: str,
    tokenizer: Any,
    shape: Shape = LANGUAGE,
    *,
    new_tokens: Sequence[int] = (),
    adapters: Sequence[Path] = (),
    quantized: BitsAndBytesConfig | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    fit: Fit | None = None,
    seed: int = 0,
) -> Any:
    """A transformers model with the weights of a folder.

    Args:
        cfg: how it is loaded.
        base: folder of the weights; `Source.folder`.
        tokenizer: of the model; what of it has no embedding is said.
        shape: its last layer.
        new_tokens: ids that the model has not seen; the mean of all embeddings stands for each.
        adapters: folders of the adapters that will be put on it, for whose embeddings room is made.
        quantized: how the weights of linear layers are packed.
        dtype: that each weight is converted to as it is read.
        device: that each weight is read to; the CPU by default.
        fit: what the weights may lack; by default nothing.
        seed: of a last layer that they lack.

    Raises:
        ModelError: it cannot be loaded.
    """
    require_config(base)
    require_safe_weights(Path(base))
    allowed = fit or (LANGUAGE_MODEL if shape is LANGUAGE else SCORER)
    with loading("model.path", base), forked_rng():
        config = AutoConfig.from_pretrained(base, trust_remote_code=cfg.trust_remote_code)
        require_one_stack(base, config)
        require_whole_weights(base, config)
        if shape is not LANGUAGE:
            _require_one_score(base, config)
        if packs_output(quantized):
            require_own_output(base, config, new_tokens)
        torch.manual_seed(seed)
        model = load_weights(
            shape.auto,
            base,
            allowed,
            key="model.path",
            dtype=dtype,
            device_map={"": str(device or "cpu")},
            quantization_config=quantized,
            trust_remote_code=cfg.trust_remote_code,
            **shape.options,
            **_embedded_padding(config),
        )
    if packs_output(quantized):
        require_own_output(base, model.config, new_tokens)  # which may have been tied
        require_packed_output(base, model)
    forget_sampling(model)
    fit_vocabulary(model, tokenizer, new_tokens, adapters)
    return model


def _require_one_score(base: str, config: Any) -> None:
    """Refuse a classifier whose head gives several numbers.

    Raises:
        ModelError: says how many.
    """
    classifies = any("SequenceClassification" in name for name in config.architectures or ())
    if classifies and config.num_labels != 1:
        raise ModelError(
            f"model.path: {base} is a classifier of {config.num_labels} labels; need a reward "
            "model, which has one, or a model without a head"
        )


def random_base(cfg: ModelConfig, tokenizer: Any, seed: int, shape: Shape = LANGUAGE) -> Any:
    """Random fp32 weights in the shape that the config says, with the tokenizer's size and ids.

    Raises:
        ModelError: there is no such shape.
    """
    key = "model.path" if cfg.path else "model.architecture"
    with loading(key, cfg.path or describe(cfg)), forked_rng():
        config = _config(cfg)
        require_one_stack(describe(cfg), config)
        config.vocab_size = vocabulary_size(tokenizer)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, name, getattr(tokenizer, name))
        for name, value in shape.options.items():
            setattr(config, name, value)
        torch.manual_seed(seed)
        model = shape.auto.from_config(
            config, dtype=torch.float32, trust_remote_code=cfg.trust_remote_code
        )
    forget_sampling(model)
    return model


def _config(cfg: ModelConfig) -> Any:
    """The transformers config of a model that starts from nothing."""
    if cfg.path:
        source = locate("model.path", cfg.path, cfg.revision)
        require_config(source)
        return AutoConfig.from_pretrained(source, trust_remote_code=cfg.trust_remote_code)
    fields = dict(cfg.architecture or DEFAULT_ARCHITECTURE)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def scorer_fit(source: Source, *, new_head: bool = False) -> Fit:
    """What the base of a reward model may lack: a head that an adapter on it brings, or a new one.

    Args:
        source: the base and its adapters.
        new_head: a head that is nowhere may be new.
    """
    for folder in source.adapters:
        with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
            if any(re.search(r"\.(score|classifier)\.", key) for key in file.keys()):  # noqa: SIM118
                return HEADLESS
    return NEW_SCORER if new_head else SCORER


def reads_forward(model: Any) -> bool:
    """Whether each position sees only those before it: a decoder, not an encoder."""
    return model.can_generate() or score_layer(model) is not None


def forget_sampling(model: Any) -> None:
    """Keep the end tokens alone: a penalty or top-k that came with it would change the sampling."""
    if not model.can_generate():
        return
    ends = model.generation_config.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=ends)


def adopt_ends(model: Any, source: Source) -> None:
    """Let a response end where it does for the adapter, if its folder says where."""
    if not model.can_generate():
        return
    if source.adapters and (source.adapters[-1] / "generation_config.json").is_file():
        learned = GenerationConfig.from_pretrained(source.adapters[-1])
        model.generation_config.eos_token_id = learned.eos_token_id


def _embedded_padding(config: Any) -> dict[str, None]:
    """No padding id, where the config names one behind the last embedding: torch refuses that."""
    padding, size = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    beyond = padding is not None and size is not None and padding >= size
    return {"pad_token_id": None} if beyond else {}


def fit_vocabulary(
    model: Any, tokenizer: Any, new_tokens: Sequence[int] = (), adapters: Sequence[Path] = ()
) -> None:
    """Make room for new tokens and for the embeddings of adapters; say which tokens have no room.

    Tokens that are neither have no embedding, like a `[PAD]` that was added and never trained. That
    is no fault as long as no row holds one, which is looked at where rows are known.

    Args:
        model: changed in place. Each row that is added, and that of each new token, is the mean of
            the others.
        tokenizer: of the model.
        new_tokens: ids that the model has not seen.
        adapters: folders of the adapters that will be put on it.
    """
    size = embedding_rows(model)
    saved = [rows_of(folder, model) for folder in adapters]
    needed = max([size, *(token + 1 for token in new_tokens), *saved])
    if needed > size:
        with forked_rng():
            model.resize_token_embeddings(needed, mean_resizing=False)
    untrained = sorted({*new_tokens, *range(size, needed)})
    if untrained:
        for layer in {model.get_input_embeddings(), model.get_output_embeddings()} - {None}:
            _fill_with_mean(layer.weight.data, untrained)
    without = describe_without_row(tokenizer, needed)
    if without:
        logger.info(f"tokenizer: {without}; rows that hold none of them are fine")


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

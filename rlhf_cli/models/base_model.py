"""Whole weights: from a folder or the hub, or at random; with the tokenizer's vocabulary.

Loading weights: all that a checkpoint holds, under its own names, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from transformers.utils import logging

from rlhf_cli.context import forked_rng, say
from rlhf_cli.errors import ModelError
from rlhf_cli.models.checks import (
    CAUSAL_LM,
    NEW_REWARD_HEAD,
    REWARD_HEAD_IN_ADAPTER,
    REWARD_MODEL,
    WRAPPERS,
    AllowedMismatch,
    convert_load_errors,
    refuse_encoder_decoder,
    require_matching_keys,
    require_model_folder,
    require_safetensors,
    require_unquantized,
    summarize_names,
)
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.quantize import (
    quantizes_output_layer,
    require_quantizable_output,
    require_quantized_output,
)
from rlhf_cli.models.resolve import (
    ADAPTER_WEIGHTS,
    DEFAULT_ARCHITECTURE,
    ModelSource,
    resolve_folder,
)
from rlhf_cli.models.reward_model import score_layer
from rlhf_cli.models.vocabulary import (
    fit_vocabulary,
    vocabulary_size,
)


@dataclass(frozen=True)
class AutoClass:
    """What stands on the layers: a transformers auto class, and what it is to be told."""

    auto: Any
    options: Mapping[str, Any]


AUTO_CLASSES = {
    "causal_lm": AutoClass(AutoModelForCausalLM, {}),
    "reward_model": AutoClass(AutoModelForSequenceClassification, {"num_labels": 1}),
}
"""By the kind of an artifact."""

LANGUAGE = AUTO_CLASSES["causal_lm"]


def load_base_model(
    cfg: ModelConfig,
    base: str,
    tokenizer: Any,
    shape: AutoClass = LANGUAGE,
    *,
    new_tokens: Sequence[int] = (),
    adapters: Sequence[Path] = (),
    quantized: BitsAndBytesConfig | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    fit: AllowedMismatch | None = None,
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
    require_model_folder(base)
    require_safetensors(Path(base))
    allowed = fit or (CAUSAL_LM if shape is LANGUAGE else REWARD_MODEL)
    with convert_load_errors("model.path", base), forked_rng():
        config = AutoConfig.from_pretrained(base, trust_remote_code=cfg.trust_remote_code)
        refuse_encoder_decoder(base, config)
        require_unquantized(base, config)
        if shape is not LANGUAGE:
            _require_one_score(base, config)
        if quantizes_output_layer(quantized):
            require_quantizable_output(base, config, new_tokens)
        torch.manual_seed(seed)
        model = load_checkpoint(
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
    if quantizes_output_layer(quantized):
        require_quantizable_output(base, model.config, new_tokens)  # which may have been tied
        require_quantized_output(base, model)
    reset_generation_config(model)
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


def build_random_model(
    cfg: ModelConfig, tokenizer: Any, seed: int, shape: AutoClass = LANGUAGE
) -> Any:
    """Random fp32 weights in the shape that the config says, with the tokenizer's size and ids.

    Raises:
        ModelError: there is no such shape.
    """
    key = "model.path" if cfg.path else "model.architecture"
    with convert_load_errors(key, cfg.path or describe_weights(cfg)), forked_rng():
        config = _config(cfg)
        refuse_encoder_decoder(describe_weights(cfg), config)
        config.vocab_size = vocabulary_size(tokenizer)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, name, getattr(tokenizer, name))
        for name, value in shape.options.items():
            setattr(config, name, value)
        torch.manual_seed(seed)
        model = shape.auto.from_config(
            config, dtype=torch.float32, trust_remote_code=cfg.trust_remote_code
        )
    reset_generation_config(model)
    return model


def _config(cfg: ModelConfig) -> Any:
    """The transformers config of a model that starts from nothing."""
    if cfg.path:
        source = resolve_folder("model.path", cfg.path, cfg.revision)
        require_model_folder(source)
        return AutoConfig.from_pretrained(source, trust_remote_code=cfg.trust_remote_code)
    fields = dict(cfg.architecture or DEFAULT_ARCHITECTURE)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def allowed_reward_mismatch(source: ModelSource, *, new_head: bool = False) -> AllowedMismatch:
    """What the base of a reward model may lack: a head that an adapter on it brings, or a new one.

    Args:
        source: the base and its adapters.
        new_head: a head that is nowhere may be new.
    """
    for folder in source.adapters:
        with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
            if any(re.search(r"\.(score|classifier)\.", key) for key in file.keys()):  # noqa: SIM118
                return REWARD_HEAD_IN_ADAPTER
    return NEW_REWARD_HEAD if new_head else REWARD_MODEL


def is_causal(model: Any) -> bool:
    """Whether each position sees only those before it: a decoder, not an encoder."""
    return model.can_generate() or score_layer(model) is not None


def reset_generation_config(model: Any) -> None:
    """Keep the end tokens alone: a penalty or top-k that came with it would change the sampling."""
    if not model.can_generate():
        return
    ends = model.generation_config.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=ends)


def adopt_stop_tokens(model: Any, source: ModelSource) -> None:
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


def describe_weights(cfg: ModelConfig) -> str:
    """Where the weights come from, in words."""
    if not cfg.from_scratch:
        return cfg.path
    kind = (cfg.architecture or DEFAULT_ARCHITECTURE)["model_type"]
    return f"random weights in the shape of {cfg.path or kind}"


logging.disable_progress_bar()  # one line of ours says what was loaded


def load_checkpoint(
    auto: Any, source: str, fit: AllowedMismatch, *, key: str, **options: Any
) -> Any:
    """A transformers model, all parameters of which come from a checkpoint.

    Args:
        auto: a transformers auto class.
        source: folder or hub id.
        fit: what may differ between the checkpoint and the class.
        key: what the user set, for messages.
        options: of `from_pretrained`.

    Raises:
        ModelError: weights are missing, left out, or of another shape; it names them.
    """
    with _quiet():
        model, report = auto.from_pretrained(
            source,
            key_mapping=dict(WRAPPERS),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `require_fit` names them, with their shapes
            use_safetensors=True,
            **options,
        )
    _forget_wrappers(model, source)
    missing = set(report["missing_keys"]) - _tie_missing_output(model, source, report)
    require_matching_keys(f"{key}: {source}", model, report, missing, fit)
    _untie_own_output(model, source)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of missing and unexpected weights."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _forget_wrappers(model: Any, source: str) -> None:
    """Keep `save_pretrained` from putting the removed parts of names back."""
    conversions = getattr(model, "_weight_conversions", None) or []
    kept = [entry for entry in conversions if entry.source_patterns[0] not in WRAPPERS]
    model._weight_conversions = kept
    if len(kept) < len(conversions):
        say(f"weights: names in {source} carry the prefixes of a wrapper; they were removed")


def _tie_missing_output(model: Any, source: str, report: Mapping[str, Any]) -> set[str]:
    """Tie an output layer that the file does not hold; gives the names that were tied."""
    missing = set(report["missing_keys"])
    if type(model).__name__ not in (model.config.architectures or ()):
        return set()  # a classifier's or a bare model's checkpoint: its output layer is elsewhere
    pairs = (getattr(model, "_tied_weights_keys", None) or {}).items()
    found = {target for target, tied_to in pairs if target in missing and tied_to not in missing}
    if found:
        _set_tied(model, True)
        model.tie_weights()
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
        say(
            f"weights: {source} has no {summarize_names(found)}, though its config says that it is "
            "not tied; it is tied to the input embeddings, and so it is in the result"
        )
    return found


def _untie_own_output(model: Any, source: str) -> None:
    """Let the config agree where the file holds an output layer that is not the embeddings."""
    output = model.get_output_embeddings()
    if output is None or not getattr(model, "_tied_weights_keys", None):
        return
    tied = output.weight is model.get_input_embeddings().weight
    if model.config.get_text_config().tie_word_embeddings and not tied:
        _set_tied(model, False)
        say(
            f"weights: the config of {source} ties the output layer to the input embeddings, but "
            "the file holds other values for it; they are used, and the result is not tied"
        )


def _set_tied(model: Any, tied: bool) -> None:
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = tied

"""Base models: weights from a folder or the hub, or random ones, fitted to a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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

from rlhf_cli.console import logger
from rlhf_cli.context import forked_rng
from rlhf_cli.errors import ModelError
from rlhf_cli.models.checks import (
    CAUSAL_LM,
    NEW_REWARD_HEAD,
    REWARD_HEAD_IN_ADAPTER,
    REWARD_MODEL,
    WRAPPERS,
    AllowedMismatch,
    refuse_encoder_decoder,
    require_matching_keys,
    require_safetensors,
    require_unquantized,
)
from rlhf_cli.models.config import DEFAULT_ARCHITECTURE, ModelConfig
from rlhf_cli.models.load_errors import convert_load_errors, require_model_folder
from rlhf_cli.models.packed_weights import pack_now, packed_later
from rlhf_cli.models.quantize import (
    quantization_config,
    quantizes_output_layer,
    require_quantizable_output,
    require_quantized_output,
)
from rlhf_cli.models.resolve import (
    ADAPTER_WEIGHTS,
    ModelSource,
    resolve_folder,
)
from rlhf_cli.models.reward_model import score_layer
from rlhf_cli.models.stored_weights import deferred, require_deferred
from rlhf_cli.models.tied_output import tie_missing_output, untie_own_output
from rlhf_cli.models.vocabulary import fit_vocabulary, vocabulary_size

logging.disable_progress_bar()  # one line of ours says what was loaded


@dataclass(frozen=True)
class AutoClass:
    """A transformers auto class, and the config options that it needs."""

    auto: Any
    options: Mapping[str, Any]
    allowed: AllowedMismatch


AUTO_CLASSES = {
    "causal_lm": AutoClass(AutoModelForCausalLM, {}, CAUSAL_LM),
    "reward_model": AutoClass(AutoModelForSequenceClassification, {"num_labels": 1}, REWARD_MODEL),
}
"""Model class for each artifact kind."""


@dataclass(frozen=True, kw_only=True)
class BaseOptions:
    """How the weights of a base model are read.

    Attributes:
        kind: of the artifact, a key of `AUTO_CLASSES`.
        new_tokens: ids that the model has not seen; their embeddings are set to the mean of all.
        adapters: folders of adapters that will be attached, and may need more embedding rows.
        quantization: transformers' config for quantized loading; none for plain weights.
        dtype: type that each weight is converted to as it is read.
        device: that each weight is read to.
        allowed: what the weights may lack; by default that of the kind.
        seed: of a head that they lack.
        deferred: leave the weights in their files; each is a `StoredTensor` then.
    """

    kind: str = "causal_lm"
    new_tokens: Sequence[int] = ()
    adapters: Sequence[Path] = ()
    quantization: BitsAndBytesConfig | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    allowed: AllowedMismatch | None = None
    seed: int = 0
    deferred: bool = False


def load_base_model(cfg: ModelConfig, folder: str, tokenizer: Any, options: BaseOptions) -> Any:
    """Load a transformers model without adapters, and fit it to a tokenizer.

    Args:
        cfg: of the model.
        folder: of the weights; `ModelSource.folder`.
        tokenizer: of the model; tokens without an embedding are printed.
        options: how the weights are read.

    Raises:
        ModelError: it cannot be loaded.
    """
    require_model_folder(folder)
    require_safetensors(Path(folder))
    auto = AUTO_CLASSES[options.kind]
    with convert_load_errors("model.path", folder), forked_rng():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=cfg.trust_remote_code)
        _require_loadable(folder, config, options)
        torch.manual_seed(options.seed)
        model = load_checkpoint(
            auto.auto,
            folder,
            options.allowed or auto.allowed,
            key="model.path",
            dtype=options.dtype,
            device_map={"": str(options.device)},
            is_deferred=options.deferred,
            quantization_config=options.quantization,
            trust_remote_code=cfg.trust_remote_code,
            **auto.options,
            **_embedded_padding(config),
        )
    if quantizes_output_layer(options.quantization):
        # again, since a missing output layer is tied while it is loaded
        require_quantizable_output(folder, model.config, options.new_tokens)
        pack_now(model.get_output_embeddings())  # its format is checked before training
        require_quantized_output(folder, model)
    reset_generation_config(model)
    fit_vocabulary(model, tokenizer, options.new_tokens, options.adapters)
    return model


def _require_loadable(folder: str, config: Any, options: BaseOptions) -> None:
    """Refuse a checkpoint that its config shows to be of another kind.

    Raises:
        ModelError: says why.
    """
    refuse_encoder_decoder(folder, config)
    require_unquantized(folder, config)
    if options.kind == "reward_model":
        _require_one_label(folder, config)
    if quantizes_output_layer(options.quantization):
        require_quantizable_output(folder, config, options.new_tokens)


def _require_one_label(folder: str, config: Any) -> None:
    classifies = any("SequenceClassification" in name for name in config.architectures or ())
    if classifies and config.num_labels != 1:
        raise ModelError(
            f"model.path: {folder} is a classifier of {config.num_labels} labels; need a reward "
            "model, which has one, or a model without a head"
        )


def _embedded_padding(config: Any) -> dict[str, None]:
    """Unset a padding id beyond the last embedding, which torch would refuse."""
    padding, size = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    beyond = padding is not None and size is not None and padding >= size
    return {"pad_token_id": None} if beyond else {}


def base_quantization(source: ModelSource, compute: torch.dtype) -> BitsAndBytesConfig | None:
    """Build the config that quantizes a base as its source says; none for plain weights.

    Args:
        source: names the quantization.
        compute: type of the products with dequantized weights.
    """
    if source.quant == "none":
        return None
    return quantization_config(
        source.quant, source.double, compute, output_layer=source.output_layer
    )


def build_random_model(cfg: ModelConfig, tokenizer: Any, seed: int, kind: str = "causal_lm") -> Any:
    """Build a model with random fp32 weights, sized for a tokenizer.

    Args:
        cfg: names the architecture.
        tokenizer: gives the vocabulary size and the ids of BOS, EOS and padding.
        seed: of the weights.
        kind: of the artifact.

    Raises:
        ModelError: there is no such architecture.
    """
    key = "model.path" if cfg.path else "model.architecture"
    auto = AUTO_CLASSES[kind]
    with convert_load_errors(key, cfg.path or describe_weights(cfg)), forked_rng():
        config = _read_config(cfg)
        refuse_encoder_decoder(describe_weights(cfg), config)
        config.vocab_size = vocabulary_size(tokenizer)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, name, getattr(tokenizer, name))
        for name, value in auto.options.items():
            setattr(config, name, value)
        torch.manual_seed(seed)
        model = auto.auto.from_config(
            config, dtype=torch.float32, trust_remote_code=cfg.trust_remote_code
        )
    reset_generation_config(model)
    return model


def _read_config(cfg: ModelConfig) -> Any:
    """Read transformers' config of a model with random weights."""
    if cfg.path:
        folder = resolve_folder("model.path", cfg.path, cfg.revision)
        require_model_folder(folder)
        return AutoConfig.from_pretrained(folder, trust_remote_code=cfg.trust_remote_code)
    fields = dict(cfg.architecture or DEFAULT_ARCHITECTURE)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def describe_weights(cfg: ModelConfig) -> str:
    """Name the origin of the weights."""
    if not cfg.from_scratch:
        return cfg.path
    kind = (cfg.architecture or DEFAULT_ARCHITECTURE)["model_type"]
    return f"random weights in the shape of {cfg.path or kind}"


def allowed_reward_mismatch(source: ModelSource, *, new_head: bool = False) -> AllowedMismatch:
    """Decide what the base of a reward model may lack: a head, if an adapter has it or it is new.

    Args:
        source: the base and its adapters.
        new_head: a head that is nowhere may be new and random.
    """
    for folder in source.adapters:
        with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
            if any(re.search(r"\.(score|classifier)\.", key) for key in file.keys()):  # noqa: SIM118
                return REWARD_HEAD_IN_ADAPTER
    return NEW_REWARD_HEAD if new_head else REWARD_MODEL


def is_causal(model: Any) -> bool:
    """Return whether each position sees only those before it, as in a decoder."""
    return model.can_generate() or score_layer(model) is not None


def reset_generation_config(model: Any) -> None:
    """Keep only the end tokens: a penalty or top-k from the hub would change the sampling."""
    if not model.can_generate():
        return
    ends = model.generation_config.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=ends)


def adopt_stop_tokens(model: Any, source: ModelSource) -> None:
    """Use the end tokens that the last adapter was trained with, if its folder names them."""
    if not model.can_generate():
        return
    if source.adapters and (source.adapters[-1] / "generation_config.json").is_file():
        learned = GenerationConfig.from_pretrained(source.adapters[-1])
        model.generation_config.eos_token_id = learned.eos_token_id


def load_checkpoint(
    auto: Any,
    source: str,
    allowed: AllowedMismatch,
    *,
    key: str,
    is_deferred: bool = False,
    **options: Any,
) -> Any:
    """Load a transformers model whose parameters all come from a checkpoint.

    Args:
        auto: a transformers auto class.
        source: folder or hub id.
        allowed: what may differ between the checkpoint and the class.
        key: config key of the source, for messages.
        is_deferred: leave the weights in their files; each is a `StoredTensor` then.
        options: of `from_pretrained`, with a `device_map` of one device.

    Raises:
        ModelError: weights are missing, left out, or of another shape; it names them.
    """
    quantized = options.get("quantization_config") is not None
    with ExitStack() as loading:
        loading.enter_context(_without_warnings())
        if is_deferred:
            loading.enter_context(deferred(options["device_map"][""]))
        if is_deferred and quantized:
            loading.enter_context(packed_later())
        model, report = auto.from_pretrained(
            source,
            key_mapping=dict(WRAPPERS),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `require_matching_keys` names them, with their shapes
            use_safetensors=True,
            **options,
        )
    _forget_wrappers(model, source)
    missing = set(report["missing_keys"]) - tie_missing_output(model, source, report)
    require_matching_keys(f"{key}: {source}", model, report, missing, allowed)
    untie_own_output(model, source)
    if is_deferred:
        require_deferred(model)
    return model


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress transformers' table of missing and unexpected weights."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _forget_wrappers(model: Any, source: str) -> None:
    """Keep `save_pretrained` from restoring the removed prefixes."""
    conversions = getattr(model, "_weight_conversions", None) or []
    kept = [entry for entry in conversions if entry.source_patterns[0] not in WRAPPERS]
    model._weight_conversions = kept
    if len(kept) < len(conversions):
        logger.info(
            f"weights: names in {source} carry the prefixes of a wrapper; they were removed"
        )

"""Checks of a checkpoint: what its folder must hold, and which weight names may differ.

transformers fills every parameter that it finds no weight for with random numbers, and leaves out
every weight that it finds no parameter for. Here both are refused by name, except where the role of
the model does not need them. Prefixes that wrappers add to names are removed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_cli.console import logger
from rlhf_cli.errors import ModelError
from rlhf_cli.runs.model_checks import encoder_decoder_message

WRAPPERS = {
    r"^(?:(?:module|_orig_mod|_fsdp_wrapped_module|base_model\.model)\.)+": "",
    r"(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+": "",
    r"\.base_layer\.": ".",
}
"""Parts of names that torch.compile, DDP, FSDP and PEFT add; transformers' `key_mapping`."""

HEADS = (
    r"^(lm_head|embed_out|final_logits_bias|lm_loss|pred_layer|cls|predictions"
    r"|vocab_(transform|layer_norm|projector)|(generator|discriminator)_predictions"
    r"|generator_lm_head|score|classifier|pre_classifier|classification_head|qa_outputs)(\.|$)"
    r"|^(decoder\.(weight|bias)|head\.(dense|norm)\..*)$"  # ModernBERT's
    r"|(^|\.)pooler\."
)
"""Output layers for language modeling and classification, none of which changes hidden states."""

NON_TEXT = (
    r"(^|\.)(vision_tower|vision_model|visual|multi_modal_projector|audio_tower|embed_vision"
    r"|embed_audio)\.|^mtp\."
)
"""Modules that no text passes through, and that a text class does not have."""

ADAPTER = r"\.(lora_\w+|modules_to_save|original_module)\."
VALUE_HEAD = r"(^|\.)(v_head|value_head|q_heads?)\."

MAX_LISTED = 3
"""Number of names that a message lists."""


@dataclass(frozen=True)
class AllowedMismatch:
    """What may differ between a checkpoint and the class that it is loaded as.

    Attributes:
        new_head: the class's output layer may be missing; it is then initialized randomly.
        missing: regular expression of parameters that the checkpoint may lack: they are not used.
        unused: regular expression of weights that the class may leave out.
    """

    new_head: bool = False
    missing: str = r"^$"
    unused: str = NON_TEXT


CAUSAL_LM = AllowedMismatch()
REWARD_MODEL = AllowedMismatch(unused=f"{HEADS}|{NON_TEXT}")
NEW_REWARD_HEAD = AllowedMismatch(new_head=True, unused=REWARD_MODEL.unused)
REWARD_HEAD_IN_ADAPTER = AllowedMismatch(missing=HEADS, unused=REWARD_MODEL.unused)
ENCODER = AllowedMismatch(missing=r"(^|\.)pooler\.", unused=REWARD_MODEL.unused)


def require_unquantized(source: str, config: Any) -> None:
    """Refuse a checkpoint that is quantized already.

    Args:
        source: folder or hub id, for the message.
        config: of transformers.

    Raises:
        ModelError: names the quantization method.
    """
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        fields = quantization if isinstance(quantization, dict) else quantization.to_dict()
        raise ModelError(
            f"model.path: {source} has weights that are quantized already "
            f"({fields.get('quant_method', 'quantization_config')}); need bf16 or fp32 weights, "
            "which quant=nf4 or quant=int8 quantizes as it loads them"
        )


def refuse_encoder_decoder(source: str, config: Any) -> None:
    """Refuse an encoder-decoder; a class for decoders would load one of its two stacks.

    Args:
        source: folder or hub id, for the message.
        config: of transformers.

    Raises:
        ModelError: says that it is one.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(encoder_decoder_message("model.path", source, config.to_dict()))


def require_safetensors(folder: Path) -> None:
    """Refuse a local folder without all of its safetensors weights.

    Raises:
        ModelError: it has only a pickle, only some shards, or no weights.
    """
    _require_all_shards(folder)
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for file in folder.glob("*.bin")) + sorted(
        file.name for file in folder.glob("*.pt*")
    )
    if pickles:
        raise ModelError(
            f"model.path: {folder} has its weights as a pickle ({pickles[0]}), which can run any "
            "code when it is loaded; need safetensors. Convert it where you trust it: "
            "model.save_pretrained(folder)"
        )
    raise ModelError(
        f"model.path: {folder} has a config and no weights (*.safetensors). "
        "Try model.init=scratch to start from random ones"
    )


def _require_all_shards(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    missing = sorted(name for name in shards if not (folder / name).is_file())
    if missing:
        raise ModelError(
            f"model.path: {folder} is not whole: {len(missing)} of {len(shards)} files of "
            f"weights are missing, {missing[0]} among them. Copy or fetch it again"
        )


def require_matching_keys(
    where: str,
    model: Any,
    report: Mapping[str, Any],
    missing: set[str],
    allowed: AllowedMismatch,
) -> None:
    """Refuse a model whose parameters are not those of its checkpoint; print what else differs.

    Args:
        where: config key and checkpoint, as messages begin.
        model: as it was loaded.
        report: transformers' `output_loading_info`.
        missing: names of its parameters that no weight was found for.
        allowed: what may differ.

    Raises:
        ModelError: weights are missing, left out, or of another shape; it names them.
    """
    _require_shapes(where, model, report["mismatched_keys"])
    _require_used(where, model, report["unexpected_keys"], missing, allowed)
    _require_complete(where, model, missing, allowed)
    _report_differences(model, report["unexpected_keys"], missing, allowed)


def _require_shapes(where: str, model: Any, mismatched: Iterable[Any]) -> None:
    """Refuse weights of another shape.

    Raises:
        ModelError: names one, and both shapes.
    """
    for name, has, needs in sorted(mismatched):
        raise ModelError(
            f"{where} has {name} of shape {list(has)}, and {type(model).__name__} needs "
            f"{list(needs)} by its config.json; need the config that belongs to the weights"
        )


def _require_used(
    where: str, model: Any, unexpected: Iterable[str], missing: set[str], allowed: AllowedMismatch
) -> None:
    """Refuse weights that the class has no parameter for and that change what it computes.

    Raises:
        ModelError: names them, and the missing ones.
    """
    extra = {name for name in unexpected if not re.search(allowed.unused, name)}
    if not extra:
        return
    lacks = f" and none for {summarize_names(missing)}" if missing else ""
    raise ModelError(
        f"{where} has weights that {type(model).__name__} does not use: "
        f"{summarize_names(extra)}{lacks}; {_advice(extra)}"
    )


def _advice(extra: set[str]) -> str:
    if any(re.search(ADAPTER, name) for name in extra):
        return (
            "an adapter was saved within the whole model. Merge it where it was trained "
            "(model.merge_and_unload().save_pretrained), or save the adapter alone and give that"
        )
    if any(re.search(VALUE_HEAD, name) for name in extra):
        return (
            "a value head is no part of this model. Save the model without it "
            "(TRL: model.pretrained_model.save_pretrained)"
        )
    return "need names as transformers saves them. Convert the checkpoint, or fix its config.json"


def _require_complete(where: str, model: Any, missing: set[str], allowed: AllowedMismatch) -> None:
    """Refuse a model of which some parameters would be random.

    Raises:
        ModelError: names them.
    """
    lacks = {name for name in missing if not _may_lack(name, model, allowed)}
    if not lacks:
        return
    if allowed is REWARD_MODEL and all(_is_head(name, model) for name in lacks):
        advice = "need a model with a trained head. Try a run of rlhf reward"
    else:
        advice = "they would be random. Copy or fetch the checkpoint again, or fix its config.json"
    raise ModelError(
        f"{where} has no weights for {summarize_names(lacks)} of {type(model).__name__}; {advice}"
    )


def _may_lack(name: str, model: Any, allowed: AllowedMismatch) -> bool:
    if allowed.new_head and _is_head(name, model):
        return True
    is_encoder = allowed is ENCODER and model.config.is_encoder_decoder
    decoder = is_encoder and name.startswith("decoder.")
    return decoder or bool(re.search(allowed.missing, name))


def _is_head(name: str, model: Any) -> bool:
    """Return whether a parameter comes after the layers that a base model and its heads share."""
    base = model.base_model_prefix
    pooled = re.search(r"(^|\.)pooler\.", name) is not None
    return pooled or (hasattr(model, base) and not name.startswith(f"{base}."))


def _report_differences(
    model: Any, unexpected: Iterable[str], missing: set[str], allowed: AllowedMismatch
) -> None:
    """Print allowed differences: one line for what is new, and one for what is left out."""
    unused = set(unexpected)
    new = {name for name in missing if allowed.new_head and _is_head(name, model)}
    if new:
        logger.info(
            f"weights: the checkpoint has no {summarize_names(new)}; this head is new and random"
        )
    if unused:
        name = type(model).__name__
        logger.info(f"weights: {name} does not use {summarize_names(unused)} of the checkpoint")


def summarize_names(names: Iterable[str]) -> str:
    """List a few names, and count the others."""
    ordered = sorted(names)
    more = len(ordered) - MAX_LISTED
    return ", ".join(ordered[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")

"""What a model's folder must hold, and what is said where one cannot be loaded.

The names of a checkpoint's weights: what wrappers add is removed, all others must fit.

transformers fills every parameter that it finds no weight for with random numbers, and leaves out
every weight that it finds no parameter for. Here both are refused by name, save where the role of
the model says that it does not need them.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlhf_cli.context import say
from rlhf_cli.errors import ModelError, RlhfError, first_line
from rlhf_cli.runs import artifact
from rlhf_cli.runs.checks import encoder_decoder


def require_config(source: str) -> None:
    """Refuse a local folder that is no model.

    Raises:
        ModelError: it has no config.
    """
    needed = ("config.json", artifact.ADAPTER)
    if Path(source).is_dir() and not any((Path(source) / name).is_file() for name in needed):
        raise ModelError(
            f"model.path: {source} has no config.json; need a model folder, a finished run or a "
            "hub id. Try model=tiny"
        )


@contextmanager
def loading(key: str, source: str) -> Iterator[None]:
    """Tell what could not be loaded in one line; libraries raise all kinds of exceptions here.

    Args:
        key: what the user set.
        source: what it was set to.

    Raises:
        ModelError: names the key, the source and the library's reason.
    """
    try:
        yield
    except (RlhfError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{key}: {source} brings Python code of its own, which is run when it is loaded. "
                "Read it, and if you trust it try model.trust_remote_code=true"
            ) from error
        reason = textwrap.shorten(first_line(error), 300)  # some name every architecture there is
        raise ModelError(f"{key}: cannot load {source}: {reason}") from error


def require_whole_weights(source: str, config: Any) -> None:
    """Refuse a checkpoint that is packed already.

    Args:
        source: where it is.
        config: of transformers.

    Raises:
        ModelError: names how it is packed.
    """
    packed = getattr(config, "quantization_config", None)
    if packed is not None:
        fields = packed if isinstance(packed, dict) else packed.to_dict()
        raise ModelError(
            f"model.path: {source} has weights that are packed already "
            f"({fields.get('quant_method', 'quantization_config')}); need whole ones, bf16 or "
            "fp32, which quant=nf4 or quant=int8 packs as it loads them"
        )


def require_one_stack(source: str, config: Any) -> None:
    """Refuse an encoder-decoder; of its two stacks a class for decoders would load one.

    Args:
        source: where it is.
        config: of transformers.

    Raises:
        ModelError: says that it is one.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(encoder_decoder("model.path", source, config.to_dict()))


def require_safe_weights(folder: Path) -> None:
    """Refuse a local folder without all of its safetensors weights.

    Raises:
        ModelError: it has only a pickle, or a part, or nothing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(name for name in shards if not (folder / name).is_file())
        if missing:
            raise ModelError(
                f"model.path: {folder} is not whole: {len(missing)} of {len(shards)} files of "
                f"weights are missing, {missing[0]} among them. Copy or fetch it again"
            )
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
"""Output layers for language modelling and classification, none of which changes hidden states."""

OTHER_PARTS = (
    r"(^|\.)(vision_tower|vision_model|visual|multi_modal_projector|audio_tower|embed_vision"
    r"|embed_audio)\.|^mtp\."
)
"""Parts that text alone does not pass through, of which a class for text has none."""

ADAPTER = r"\.(lora_\w+|modules_to_save|original_module)\."
VALUE_HEAD = r"(^|\.)(v_head|value_head|q_heads?)\."

SHOWN = 3
"""Names that a message gives."""


@dataclass(frozen=True)
class Fit:
    """What may differ between a checkpoint and the class that it is loaded as.

    Attributes:
        new_head: the class's output layer may be missing; it is then new and random.
        unread: regular expression of parameters that may be missing because nothing reads them.
        unused: regular expression of weights that the class may leave out.
    """

    new_head: bool = False
    unread: str = r"^$"
    unused: str = OTHER_PARTS


LANGUAGE_MODEL = Fit()
SCORER = Fit(unused=f"{HEADS}|{OTHER_PARTS}")
NEW_SCORER = Fit(new_head=True, unused=SCORER.unused)
HEADLESS = Fit(unread=HEADS, unused=SCORER.unused)
"""The base of a reward model whose head comes with an adapter."""

ENCODER = Fit(unread=r"(^|\.)pooler\.", unused=SCORER.unused)


def require_fit(
    where: str, model: Any, report: Mapping[str, Any], missing: set[str], fit: Fit
) -> None:
    """Refuse a model whose parameters are not what its checkpoint holds; tell what else differs.

    Args:
        where: the key and the checkpoint, as messages begin.
        model: as it was loaded.
        report: transformers' `output_loading_info`.
        missing: names of its parameters that no weight was found for.
        fit: what may differ.

    Raises:
        ModelError: weights are missing, left out, or of another shape; it names them.
    """
    _require_shapes(where, model, report["mismatched_keys"])
    _require_used(where, model, report["unexpected_keys"], missing, fit)
    _require_whole(where, model, missing, fit)
    _tell_differences(model, report["unexpected_keys"], missing, fit)


def _require_shapes(where: str, model: Any, mismatched: Iterable[Any]) -> None:
    """Refuse weights of another shape.

    Raises:
        ModelError: says which, and both shapes.
    """
    for name, has, needs in sorted(mismatched):
        raise ModelError(
            f"{where} has {name} of shape {list(has)}, and {type(model).__name__} needs "
            f"{list(needs)} by its config.json; need the config that belongs to the weights"
        )


def _require_used(
    where: str, model: Any, unexpected: Iterable[str], missing: set[str], fit: Fit
) -> None:
    """Refuse weights that the class has no parameter for and that change what it computes.

    Raises:
        ModelError: names them, and those that are missing in their place.
    """
    extra = {name for name in unexpected if not re.search(fit.unused, name)}
    if not extra:
        return
    lacks = f" and none for {listed(missing)}" if missing else ""
    raise ModelError(
        f"{where} has weights that {type(model).__name__} has no place for: {listed(extra)}"
        f"{lacks}; {_advice(extra)}"
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
    return "need names as transformers saves them. Convert the checkpoint, or mend its config.json"


def _require_whole(where: str, model: Any, missing: set[str], fit: Fit) -> None:
    """Refuse a model of which some parameters would be random.

    Raises:
        ModelError: names them.
    """
    lacks = {name for name in missing if not _may_lack(name, model, fit)}
    if not lacks:
        return
    if fit is SCORER and all(_is_head(name, model) for name in lacks):
        advice = "need a model with a trained head. Try a run of rlhf reward"
    else:
        advice = "they would be random. Copy or fetch the checkpoint again, or mend its config.json"
    raise ModelError(
        f"{where} has no weights for {listed(lacks)} of {type(model).__name__}; {advice}"
    )


def _may_lack(name: str, model: Any, fit: Fit) -> bool:
    if fit.new_head and _is_head(name, model):
        return True
    decoder = fit is ENCODER and model.config.is_encoder_decoder and name.startswith("decoder.")
    return decoder or bool(re.search(fit.unread, name))


def _is_head(name: str, model: Any) -> bool:
    """Whether a parameter stands behind the layers that a base model and its heads share."""
    trunk = model.base_model_prefix
    pooled = re.search(r"(^|\.)pooler\.", name) is not None
    return pooled or (hasattr(model, trunk) and not name.startswith(f"{trunk}."))


def _tell_differences(model: Any, unexpected: Iterable[str], missing: set[str], fit: Fit) -> None:
    """One line for what is new and one for what is left out, where that is no fault."""
    unused = set(unexpected)
    new = {name for name in missing if fit.new_head and _is_head(name, model)}
    if new:
        say(f"weights: the checkpoint has no {listed(new)}; this head is new and random")
    if unused:
        say(f"weights: {type(model).__name__} does not use {listed(unused)} of the checkpoint")


def listed(names: Iterable[str]) -> str:
    """A few names, and how many more there are."""
    ordered = sorted(names)
    more = len(ordered) - SHOWN
    return ", ".join(ordered[:SHOWN]) + (f" and {more} more" if more > 0 else "")

"""Checks of a model's folder before anything is loaded, from JSON files and weight headers.

Each check returns lines that name the config key. Checks run on the configuration, and again after
what it names on the hub has been fetched.
"""

import json
import re
from collections.abc import Mapping
from os.path import expanduser, isdir
from pathlib import Path
from typing import Any

from rlhf_cli.config.suggest import nearest
from rlhf_cli.resources import SHIPPED, shipped_model
from rlhf_cli.runs.artifact import (
    ADAPTER_CONFIG,
    find_model_folder,
    is_adapter,
    is_reward_model,
    read_adapter_base,
    read_model_json,
)


def check_language_model(key: str, path: str, revision: str) -> list[str]:
    """Report a path, with its revision, that cannot be used as a language model."""
    return [
        *check_revision(key, path, revision),
        *check_not_reward_model(key, path, revision),
        *check_not_encoder_decoder(key, path, revision),
    ]


def check_not_reward_model(key: str, path: str, revision: str = "") -> list[str]:
    """Report a reward model where a language model is needed."""
    if not is_reward_model(path, revision):
        return []
    return [
        f"{key}: got {path}, a reward model, which gives scores and writes no text; "
        "need a language model. Try the model that it was trained from"
    ]


def check_not_encoder_decoder(key: str, path: str, revision: str = "") -> list[str]:
    """Report an encoder-decoder, by the config of the model or of its adapter's base."""
    folder = find_model_folder(path, revision)
    config = _read_local_config(folder) if folder else {}
    return [encoder_decoder_message(key, path, config)] if config.get("is_encoder_decoder") else []


def _read_local_config(folder: Path) -> dict[str, object]:
    """Read the config of a model, or of the local base of an adapter."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return read_model_json(folder)
    base = find_model_folder(*read_adapter_base(folder))
    return read_model_json(base) if base else {}


def encoder_decoder_message(key: str, path: str, config: dict[str, object]) -> str:
    """Build the message that refuses an encoder-decoder.

    Args:
        key: config key of the model.
        path: its value.
        config: the transformers config, as in `config.json`.
    """
    kind = config.get("model_type", "unknown")
    return (
        f"{key}: got {path}, an encoder-decoder ({kind}), which is not supported; need a model of "
        "one stack: a decoder, or for scores an encoder"
    )


def check_revision(key: str, path: str, revision: str) -> list[str]:
    """Report a revision of something that is not on the hub.

    Args:
        key: of the model, as `model.path` (whose revision is `model.revision`) or `model.tokenizer`
            (`model.tokenizer_revision`).
        path: value of the key.
        revision: value of its revision key.
    """
    own = "revision" if key.endswith((".path", ".model", ".classifier")) else ""
    named = f"{key.rpartition('.')[0]}.{own}" if own else f"{key}_revision"
    if not revision:
        return []
    if not path:
        return [f"{named}: got {revision} without {key}; need the hub id that it is a revision of"]
    if path == SHIPPED or isdir(expanduser(path)):
        return [
            f"{named}: got {revision} with {key}={path}, which is not on the hub and has no "
            f"revisions. Leave {named} out"
        ]
    return []


def check_base_revision(group: str, path: str, base: str, revision: str) -> list[str]:
    """Report a revision of a base that is not on the hub, or of a model without a base.

    Args:
        group: of the keys, as `model` (`model.base` and `model.base_revision`).
        path: of the model.
        base: value of the base key.
        revision: value of its revision key.
    """
    if base:
        return check_revision(f"{group}.base", base, revision)
    if not revision or not isdir(expanduser(path)) or is_adapter(path):
        return []
    return [
        f"{group}.base_revision: got {revision}, but {path} is no adapter and has no base. "
        f"Leave {group}.base_revision out"
    ]


_POSITIONS = ("max_position_embeddings", "n_positions")
_OFFSET = re.compile(r"roberta|camembert|longformer|mpnet|esm|luke|data2vec")
"""Model types whose positions start after the padding id; checked after loading."""

_EXPERTS = re.compile(r"(^|\.)\w*experts(\.|$)")
_EMBEDDING = re.compile(r"emb(?!ed_out)|^w[tp]e$")
_WRAPPERS = re.compile(
    r"(^|(?<=\.))(module|_orig_mod|_fsdp_wrapped_module|base_model\.model|base_layer)\."
)
_LLAMA = (
    *(f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.post_attention_layernorm.weight",
    "model.embed_tokens.weight",
    "model.norm.weight",
)
"""Weight names of a Llama layer; the shipped model has no weight file."""

_HEADS = {"lm_head", "score"}
"""Output layers, which a file may lack: tied to the embeddings, or new in this run."""


def read_base_config(path: str, revision: str = "", base: str = "") -> dict[str, Any]:
    """Read the `config.json` of a model, or of an adapter's base; empty if it is not here.

    Args:
        path: folder, finished run, hub id or `tiny`.
        revision: of a hub id.
        base: of an adapter, if the configuration names it.
    """
    folder = find_base_folder(path, revision, base)
    return read_model_json(folder) if folder else {}


def find_base_folder(path: str, revision: str = "", base: str = "") -> Path | None:
    """Find the folder with whole weights: the model's, or its adapter's base; None if not here."""
    if path == SHIPPED:
        return shipped_model()
    folder = find_model_folder(path, revision)
    if folder is None or not (folder / ADAPTER_CONFIG).is_file():
        return folder
    return find_model_folder(base) if base else find_model_folder(*read_adapter_base(folder))


def max_positions(config: Mapping[str, Any]) -> int | None:
    """Number of positions of a model by its config; None if the config does not give it."""
    inner = config.get("text_config")
    text = {**config, **inner} if isinstance(inner, dict) else config
    if _OFFSET.search(str(text.get("model_type", ""))):
        return None
    found = next((text[name] for name in _POSITIONS if text.get(name)), None)
    return found if isinstance(found, int) and found > 0 else None


def read_weight_shapes(folder: Path) -> dict[str, list[int]]:
    """Read name -> shape of every weight in a folder's safetensors, without wrapper prefixes.

    Only headers are read; a damaged file is ignored here and refused when it is loaded.
    """
    shapes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, about in _header(file).items():
            if isinstance(about, dict) and isinstance(about.get("shape"), list):
                shapes[_WRAPPERS.sub("", name)] = about["shape"]
    return shapes


def _header(file: Path) -> dict[str, Any]:
    """Read the JSON header of a safetensors file, which follows its length in eight bytes."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            return dict(json.loads(stream.read(length)))
    except (OSError, ValueError, TypeError, OverflowError, MemoryError):
        return {}


def read_module_names(folder: Path | None, config: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """Read the parts of all module names, and the last parts of the names of linear layers.

    For example `layers` and `q_proj` of `model.layers.0.self_attn.q_proj`. Both are empty if they
    are not known: the weights are not here, or the model has experts, which loading fuses into
    other modules.
    """
    shapes = read_weight_shapes(folder) if folder else {}
    if not shapes and config.get("model_type") == "llama":
        shapes = {name: [0] if "norm" in name else [0, 0] for name in _LLAMA}
    if not shapes or any(_EXPERTS.search(name) for name in shapes):
        return set(), set()
    owners = [name.split(".")[:-1] for name in shapes]
    parts = {part for owner in owners for part in owner if not part.isdigit()}
    matrices = {
        owner[-1]
        for owner, (name, shape) in zip(owners, shapes.items(), strict=True)
        if owner and len(shape) == 2 and name.endswith(".weight")
    }
    linear = {name for name in matrices if not _EMBEDDING.search(name)}
    return parts | _HEADS, linear | _HEADS


def check_module_names(key: str, names: list[str], known: set[str], kind: str) -> list[str]:
    """Report each name that is no module of the model.

    Args:
        key: config key.
        names: its values; full names, or ends of names that start after a dot.
        known: parts of the existing names; empty if they are not known.
        kind: of the modules, for the message.
    """
    found = []
    for name in names:
        last = next((part for part in reversed(name.split(".")) if not part.isdigit()), name)
        if known and last not in known:
            close = nearest(last, sorted(known))
            meant = [
                _replace_last(other, last, close) if other == name else other for other in names
            ]
            advice = f". Try {key}=[{','.join(meant)}]" if close else ""
            has = ", ".join(sorted(known - _HEADS))
            found.append(f"{key}: got {name}; no {kind} has that name, the model has {has}{advice}")
    return found


def _replace_last(name: str, last: str, other: str) -> str:
    """Replace the last occurrence of a part in a name: `layer.0` -> `layers.0`."""
    before, _, after = name.rpartition(last)
    return before + other + after


def check_layer_names(model: Any, adapter: Any) -> list[str]:
    """Report each layer name in the configuration that the model's files do not have.

    Args:
        model: a `ModelConfig`.
        adapter: an `AdapterConfig`, of a new adapter or of none.
    """
    targets = [adapter.targets] if isinstance(adapter.targets, str) else adapter.targets
    targets = [] if targets == ["all-linear"] else targets
    freeze = getattr(model, "freeze", [])
    if not (targets or adapter.modules_to_save or freeze):
        return []
    folder = find_base_folder(model.path, model.revision, model.base)
    config = read_base_config(model.path, model.revision, model.base)
    modules, matrices = read_module_names(folder, config or model.architecture)
    return [
        *check_module_names("adapter.targets", targets, matrices, "linear layer"),
        *check_module_names("adapter.modules_to_save", adapter.modules_to_save, modules, "layer"),
        *check_module_names("model.freeze", freeze, modules, "layer"),
    ]


def check_adapter(model: Any, adapter: Any, default: Any) -> list[str]:
    """Report how the adapter at `model.path` differs from the configuration."""
    folder = find_model_folder(model.path, model.revision)
    if adapter.kind == "none" or folder is None:
        return []
    return compare_adapter(adapter, read_model_json(folder, ADAPTER_CONFIG), default, model.path)


def compare_adapter(asked: Any, found: Mapping[str, Any], default: Any, where: str) -> list[str]:
    """Report how an adapter that is trained further differs from the configuration.

    Settings at their default are not compared, except kind and rank.

    Args:
        asked: an `AdapterConfig` whose kind is not none.
        found: the adapter's `adapter_config.json`.
        default: an `AdapterConfig` of defaults.
        where: path of the adapter.
    """
    kind = "dora" if found.get("use_dora") else "rslora" if found.get("use_rslora") else "lora"
    has = {"kind": kind, "rank": found.get("r"), "alpha": found.get("lora_alpha")}
    has["dropout"] = found.get("lora_dropout")
    lines = [
        f"adapter.{name}: got {getattr(asked, name)}, but the adapter in {where} has {value} and "
        f"is to be trained on. Try adapter.{name}={value}, or adapter.start=stack for a new one "
        "on top"
        for name, value in has.items()
        if value is not None
        and getattr(asked, name) != value
        and (name in ("kind", "rank") or getattr(asked, name) != getattr(default, name))
    ]
    return lines + [
        f"adapter.{name}: given, but the adapter in {where} has its layers already. Leave it out, "
        "or add adapter.start=stack for a new one on top"
        for name in ("targets", "modules_to_save")
        if getattr(asked, name) != getattr(default, name)
    ]

"""What `config.json` and the headers of weight files tell of a model before anything is loaded."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_cli.config.suggest import nearest
from rlhf_cli.resources import SHIPPED, shipped_model
from rlhf_cli.runs.artifact import ADAPTER, local_folder, recorded_base, settings

_POSITIONS = ("max_position_embeddings", "n_positions")
_OFFSET = re.compile(r"roberta|camembert|longformer|mpnet|esm|luke|data2vec")
"""Model types that count positions from behind that of padding; asked once they are loaded."""

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
"""Weights of a Llama, of which the shipped model has no file."""

_HEADS = {"lm_head", "score"}
"""Output layers, which a file may leave out: tied to the embeddings, or new for this run."""


def config_of(path: str, revision: str = "", base: str = "") -> dict[str, Any]:
    """The `config.json` of a model, or of the base of an adapter; empty where it is not here.

    Args:
        path: folder, finished run, hub id or `tiny`.
        revision: of a hub id.
        base: of an adapter, where the configuration says what it stands on.
    """
    folder = base_folder(path, revision, base)
    return settings(folder) if folder else {}


def base_folder(path: str, revision: str = "", base: str = "") -> Path | None:
    """The folder of whole weights that a model stands on; none where it is not here."""
    if path == SHIPPED:
        return shipped_model()
    folder = local_folder(path, revision)
    if folder is None or not (folder / ADAPTER).is_file():
        return folder
    return local_folder(base) if base else local_folder(*recorded_base(folder))


def positions(config: Mapping[str, Any]) -> int | None:
    """Longest row of a model, by its config; none where that does not say or not plainly."""
    inner = config.get("text_config")
    text = {**config, **inner} if isinstance(inner, dict) else config
    if _OFFSET.search(str(text.get("model_type", ""))):
        return None
    found = next((text[name] for name in _POSITIONS if text.get(name)), None)
    return found if isinstance(found, int) and found > 0 else None


def weight_shapes(folder: Path) -> dict[str, list[int]]:
    """Name -> shape of every weight in a folder's safetensors, without what wrappers add to it.

    Headers alone are read; a file that is damaged is left to what loads it.
    """
    shapes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, about in _header(file).items():
            if isinstance(about, dict) and isinstance(about.get("shape"), list):
                shapes[_WRAPPERS.sub("", name)] = about["shape"]
    return shapes


def _header(file: Path) -> dict[str, Any]:
    """The JSON that a safetensors file begins with, behind its length in eight bytes."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            return dict(json.loads(stream.read(length)))
    except (OSError, ValueError, TypeError, OverflowError, MemoryError):
        return {}


def module_names(folder: Path | None, config: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """Parts of the names of a model's modules, and last parts of those of linear layers.

    `layers` and `q_proj` of `model.layers.0.self_attn.q_proj`, say. Both are empty where they are
    not known: the weights are not here, or the model has experts, which are fused into other
    modules as they are loaded.
    """
    shapes = weight_shapes(folder) if folder else {}
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


def unknown_names(key: str, names: list[str], known: set[str], kind: str) -> list[str]:
    """The line for each name that is that of no module.

    Args:
        key: what the user set.
        names: what it was set to; a whole name, or the end of one from a dot on.
        known: parts of names that there are; where there are none, nothing is known.
        kind: what the modules are, in words.
    """
    found = []
    for name in names:
        last = next((part for part in reversed(name.split(".")) if not part.isdigit()), name)
        if known and last not in known:
            close = nearest(last, sorted(known))
            meant = [_with_last(other, last, close) if other == name else other for other in names]
            advice = f". Try {key}=[{','.join(meant)}]" if close else ""
            has = ", ".join(sorted(known - _HEADS))
            found.append(f"{key}: got {name}; no {kind} has that name, the model has {has}{advice}")
    return found


def _with_last(name: str, last: str, other: str) -> str:
    """`layer.0` with `layers` in the place of `layer`."""
    before, _, after = name.rpartition(last)
    return before + other + after


def layer_problems(model: Any, adapter: Any) -> list[str]:
    """The line for each name of layers that a model does not have, as far as its files tell.

    Args:
        model: a `ModelConfig`.
        adapter: an `AdapterConfig`: of a new adapter, or of none.
    """
    targets = [adapter.targets] if isinstance(adapter.targets, str) else adapter.targets
    targets = [] if targets == ["all-linear"] else targets
    freeze = getattr(model, "freeze", [])
    if not (targets or adapter.modules_to_save or freeze):
        return []
    folder = base_folder(model.path, model.revision, model.base)
    config = config_of(model.path, model.revision, model.base)
    modules, matrices = module_names(folder, config or model.architecture)
    return [
        *unknown_names("adapter.targets", targets, matrices, "linear layer"),
        *unknown_names("adapter.modules_to_save", adapter.modules_to_save, modules, "layer"),
        *unknown_names("model.freeze", freeze, modules, "layer"),
    ]


def adapter_problems(model: Any, adapter: Any, default: Any) -> list[str]:
    """What the adapter at `model.path` has otherwise than is asked for; as `unlike_adapter`."""
    folder = local_folder(model.path, model.revision)
    if adapter.kind == "none" or folder is None:
        return []
    return unlike_adapter(adapter, settings(folder, ADAPTER), default, model.path)


def unlike_adapter(asked: Any, found: Mapping[str, Any], default: Any, where: str) -> list[str]:
    """What an adapter that is to be trained on has otherwise than the configuration asks for.

    What is left at its default asks for nothing, save the kind and the rank.

    Args:
        asked: an `AdapterConfig` whose kind is not none.
        found: the adapter's `adapter_config.json`.
        default: an `AdapterConfig` of defaults.
        where: the adapter is.
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

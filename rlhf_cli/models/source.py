"""What `model.path` means: base weights, the adapters on them, and where both are."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from transformers.utils import cached_file, find_adapter_config_file

from rlhf_cli.errors import ModelError
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.loading import loading
from rlhf_cli.resources import SHIPPED, shipped_model
from rlhf_cli.runs import artifact
from rlhf_cli.runs.artifact import resolve_run

DEFAULT_ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 288,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "intermediate_size": 768,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
"""What `model.init=scratch` builds when nothing else is said: an 8 M parameter Llama."""

DEFAULT_VOCAB_SIZE = 8192

ADAPTER_WEIGHTS = "adapter_model.safetensors"
OWN_BASE = "base"
"""Folder of a run that holds the base of its adapter, where those weights are nowhere else."""

STACKED = "stacked_"
"""Folders beside an adapter's weights that hold the adapters it stands on, first to last."""


@dataclass(frozen=True)
class Source:
    """A model as it can be loaded.

    Attributes:
        base: folder or hub id of whole weights.
        adapters: folders of the adapters on it, the last trained last.
        quant: what a run's base was quantized to; `none` for other models.
        double: whether its scales were too.
        new_tokens: ids whose embeddings were trained beside the adapter.
        kind: of the artifact: what the adapters were trained as.
        output_layer: whether the base's output layer was quantized.
    """

    base: str
    adapters: tuple[Path, ...] = ()
    quant: str = "none"
    double: bool = True
    new_tokens: tuple[int, ...] = ()
    kind: str = "causal_lm"
    output_layer: bool = False

    def describe(self) -> str:
        """The base, and what stands on it, in words."""
        return " + ".join([self.base, *map(str, self.adapters)])


def find_source(cfg: ModelConfig) -> Source:
    """What `model.path` stands for.

    Raises:
        ModelError: the path is an unfinished run, or an adapter whose base is not there.
    """
    place = locate(cfg.path)
    folder = Path(place) if Path(place).is_dir() else _fetch_adapter(place, cfg)
    if folder is None or not (folder / artifact.ADAPTER).is_file():
        return Source(place)
    facts = artifact.read(folder)
    base = _find_base(folder, cfg)
    recorded = facts.get("base_fingerprint", "")
    if recorded and Path(base).is_dir() and fingerprint(Path(base)) != recorded:
        raise ModelError(
            f"model.path: {cfg.path} is an adapter of another base: the weights in {base} are not "
            "those it was trained on. Give those with model.base=FOLDER_OR_HUB_ID"
        )
    stacked = sorted(path.parent for path in folder.glob(f"{STACKED}*/{artifact.ADAPTER}"))
    return Source(
        base,
        (*stacked, folder),
        facts.get("quant", "none"),
        facts.get("quant_double", True),
        tuple(facts.get("new_tokens", [])),
        facts.get("kind", "causal_lm"),
        facts.get("quant_output_layer", False),
    )


def _fetch_adapter(hub_id: str, cfg: ModelConfig) -> Path | None:
    """The folder of an adapter on the hub; none where the id is that of a whole model."""
    revision = cfg.revision or "main"
    with loading("model.path", cfg.path, hub=True):
        file = find_adapter_config_file(hub_id, revision=revision)
        if file is not None:
            cached_file(hub_id, ADAPTER_WEIGHTS, revision=revision)
    return Path(file).parent if file is not None else None


def _find_base(folder: Path, cfg: ModelConfig) -> str:
    """Where an adapter's base is: as the user says, beside the adapter's run, or as recorded."""
    if cfg.base:
        return locate(cfg.base)
    settings = json.loads((folder / artifact.ADAPTER).read_text(encoding="utf-8"))
    base = str(settings.get("base_model_name_or_path") or "")
    beside = folder.parent / OWN_BASE
    if Path(base).name == OWN_BASE and beside.is_dir():  # a run's own, wherever that was moved
        return str(beside)
    if not base or (os.path.isabs(base) and not os.path.isdir(base)):
        raise ModelError(
            f"model.path: {cfg.path} is an adapter whose base {base or '(not named)'} is not "
            "there. Say where it is with model.base=FOLDER_OR_HUB_ID"
        )
    return locate(base)


def fingerprint(folder: Path) -> str:
    """Changes with a model's weights: the files' sizes and evenly spaced parts of their bytes."""
    whole = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        whole.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            for part in range(_PARTS):
                stream.seek(part * max(1, size // _PARTS))
                whole.update(stream.read(_PART_BYTES))
    return whole.hexdigest()[:32]


_PARTS, _PART_BYTES = 64, 1 << 16


def locate(path: str) -> str:
    """The folder that a shipped name, a finished run or a folder means; else the hub id as it is.

    Raises:
        ModelError: the folder is a run that is not finished.
    """
    if path == SHIPPED:
        return str(shipped_model(path))
    folder = Path(path).expanduser()
    return str(resolve_run(folder).absolute()) if folder.is_dir() else path

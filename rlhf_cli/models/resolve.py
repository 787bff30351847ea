"""What `model.path` means: base weights, the adapters on them, and where both are."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf_cli.errors import ModelError
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.resources import SHIPPED, shipped_model
from rlhf_cli.runs import artifact, contents, hub
from rlhf_cli.runs.artifact import resolve_run
from rlhf_cli.runs.files import sampled

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

ADAPTER_WEIGHTS = hub.ADAPTER_WEIGHTS
OWN_BASE = contents.BASE

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
        kind: of the artifact: what the adapters were trained as.
        output_layer: whether the base's output layer was quantized.
        snapshot: of a hub id, the folder of its files at one commit.
    """

    base: str
    adapters: tuple[Path, ...] = ()
    quant: str = "none"
    double: bool = True
    kind: str = "causal_lm"
    output_layer: bool = False
    snapshot: Path | None = None

    @property
    def folder(self) -> str:
        """Where the base's weights are."""
        return self.base if self.snapshot is None else str(self.snapshot)

    @property
    def commit(self) -> str:
        """Of a base on the hub; empty for a folder."""
        return "" if self.snapshot is None else self.snapshot.name

    def describe(self) -> str:
        """The base, and what stands on it, in words."""
        return " + ".join([self.base, *map(str, self.adapters)])


def find_source(cfg: ModelConfig) -> Source:
    """What `model.path` stands for; weights on the hub are fetched.

    Raises:
        ModelError: the path is an unfinished run, or an adapter whose base is not there.
    """
    whole = _whole("model.path", cfg.path, cfg.revision)
    folder = Path(whole.folder)
    if not (folder / artifact.ADAPTER).is_file():
        return whole
    facts = artifact.read(folder)
    base = _find_base(folder, cfg)
    recorded = facts.get("base_fingerprint", "")
    if recorded and fingerprint(Path(base.folder)) != recorded:
        raise ModelError(
            f"model.path: {cfg.path} is an adapter of another base: the weights in {base.base} are "
            "not those it was trained on. Give those with model.base=FOLDER_OR_HUB_ID"
        )
    stacked = sorted(path.parent for path in folder.glob(f"{STACKED}*/{artifact.ADAPTER}"))
    return replace(
        base,
        adapters=(*stacked, folder),
        quant=facts.get("quant", "none"),
        double=facts.get("quant_double", True),
        kind=facts.get("kind", "causal_lm"),
        output_layer=facts.get("quant_output_layer", False),
    )


def _find_base(folder: Path, cfg: ModelConfig) -> Source:
    """Where an adapter's base is: as the user says, beside the adapter's run, or as recorded."""
    if cfg.base:
        return _whole("model.base", cfg.base, cfg.base_revision)
    base, recorded = artifact.recorded_base(folder)
    beside = folder.parent / OWN_BASE
    if Path(base).name == OWN_BASE and beside.is_dir():  # a run's own, wherever that was moved
        return Source(str(beside))
    if not base or (os.path.isabs(base) and not os.path.isdir(base)):
        raise ModelError(
            f"model.path: {cfg.path} is an adapter whose base {base or '(not named)'} is not "
            "there. Say where it is with model.base=FOLDER_OR_HUB_ID"
        )
    return _whole("model.base", base, cfg.base_revision or recorded)


def _whole(key: str, path: str, revision: str) -> Source:
    """Whole weights in a folder, in a finished run or on the hub."""
    place = locate(key, path, revision, weights=True)
    local = path == SHIPPED or Path(path).expanduser().is_dir()
    return Source(place) if local else Source(path, snapshot=Path(place))


def other_model(own: ModelConfig, path: str, revision: str) -> ModelConfig:
    """How another model of a run is loaded: with its own tokenizer, otherwise as the run's own.

    Args:
        own: of the run's own model.
        path: folder, finished run or hub id of the other.
        revision: of a hub id.
    """
    return replace(
        own,
        path=path,
        revision=revision,
        base="",
        base_revision="",
        init="pretrained",
        architecture={},
        tokenizer="",
        tokenizer_revision="",
        tokenizer_vocab_size=0,
        chat_template="",
    )


def fingerprint(folder: Path) -> str:
    """Changes with a model's weights: the files' sizes and evenly spaced parts of their bytes."""
    whole = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        whole.update(f"{file.name} {size}\n".encode())
        for part in sampled(file):
            whole.update(part)
    return whole.hexdigest()[:32]


def locate(key: str, path: str, revision: str = "", *, weights: bool = False) -> str:
    """The folder that a shipped name, a finished run, a folder or a hub id means.

    Args:
        key: that named it, for messages.
        path: what it was set to.
        revision: branch, tag or commit of a hub id.
        weights: of a hub id, fetch the weights too.

    Raises:
        ModelError: the folder is a run that is not finished, or the hub id cannot be fetched.
    """
    if path == SHIPPED:
        return str(shipped_model(path))
    folder = Path(path).expanduser()
    if folder.is_dir():
        return str(resolve_run(folder).absolute())
    return str(hub.fetch(key, path, revision, weights=weights))

"""Resolve `model.path`: find base weights and the adapters on them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf_cli.errors import ModelError
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.resources import SHIPPED, shipped_model
from rlhf_cli.runs import artifact, hub, run_files
from rlhf_cli.runs.artifact import resolve_run
from rlhf_cli.runs.run_files import hash_name_and_size, hash_samples

ADAPTER_WEIGHTS = hub.ADAPTER_WEIGHTS
LOCAL_BASE = run_files.BASE

STACKED_PREFIX = "stacked_"
"""Prefix of the folders, below an adapter's own, of the adapters under it, first to last."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model's weights are.

    Attributes:
        base: folder or hub id of the base model; empty for random weights.
        adapters: folders of the adapters on it, in the order of their training.
        quant: quantization of the base when the adapters were trained; else `none`.
        double: whether the scales were quantized too.
        kind: of the artifact, `causal_lm` or `reward_model`.
        output_layer: whether the base's output layer was quantized too.
        snapshot: local folder of a hub id's files at one commit.
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
        """Folder of the base's weights."""
        return self.base if self.snapshot is None else str(self.snapshot)

    @property
    def commit(self) -> str:
        """Commit of a base from the hub; empty for a folder."""
        return "" if self.snapshot is None else self.snapshot.name

    def describe(self) -> str:
        """Name the base and its adapters."""
        return " + ".join([self.base, *map(str, self.adapters)])


def resolve_model(cfg: ModelConfig) -> ModelSource:
    """Resolve `model.path`; weights on the hub are fetched.

    Raises:
        ModelError: the path is an unfinished run, or an adapter whose base is not there.
    """
    found = _resolve_base("model.path", cfg.path, cfg.revision)
    folder = Path(found.folder)
    if not (folder / artifact.ADAPTER_CONFIG).is_file():
        return found
    facts = artifact.read(folder)
    base = _find_base(folder, cfg)
    recorded = facts.get("base_fingerprint", "")
    if recorded and weights_fingerprint(Path(base.folder)) != recorded:
        raise ModelError(
            f"model.path: {cfg.path} is an adapter of another base: the weights in {base.base} are "
            "not those it was trained on. Give those with model.base=FOLDER_OR_HUB_ID"
        )
    stacked = sorted(
        path.parent for path in folder.glob(f"{STACKED_PREFIX}*/{artifact.ADAPTER_CONFIG}")
    )
    return replace(
        base,
        adapters=(*stacked, folder),
        quant=facts.get("quant", "none"),
        double=facts.get("quant_double", True),
        kind=facts.get("kind", "causal_lm"),
        output_layer=facts.get("quant_output_layer", False),
    )


def _find_base(folder: Path, cfg: ModelConfig) -> ModelSource:
    """Find an adapter's base: `model.base`, or in the adapter's run, or as recorded."""
    if cfg.base:
        return _resolve_base("model.base", cfg.base, cfg.base_revision)
    base, recorded = artifact.read_adapter_base(folder)
    beside = folder.parent / LOCAL_BASE
    if (
        Path(base).name == LOCAL_BASE and beside.is_dir()
    ):  # a run's own, also after the run was moved
        return ModelSource(str(beside))
    if not base or (os.path.isabs(base) and not os.path.isdir(base)):
        raise ModelError(
            f"model.path: {cfg.path} is an adapter whose base {base or '(not named)'} is not "
            "there. Say where it is with model.base=FOLDER_OR_HUB_ID"
        )
    return _resolve_base("model.base", base, cfg.base_revision or recorded)


def _resolve_base(key: str, path: str, revision: str) -> ModelSource:
    """Resolve weights without adapters: in a folder, in a finished run or on the hub."""
    folder = resolve_folder(key, path, revision, weights=True)
    local = path == SHIPPED or Path(path).expanduser().is_dir()
    return ModelSource(folder) if local else ModelSource(path, snapshot=Path(folder))


def config_for_other_model(own: ModelConfig, path: str, revision: str) -> ModelConfig:
    """Derive the config of a run's second model: as the first, but with its own tokenizer.

    Args:
        own: config of the run's own model.
        path: folder, finished run or hub id of the second.
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


def weights_fingerprint(folder: Path) -> str:
    """Hash the weight files of a folder: their sizes, and evenly spaced parts of their bytes."""
    whole = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        hash_name_and_size(whole, file)
        hash_samples(whole, file)
    return whole.hexdigest()[:32]


def resolve_folder(key: str, path: str, revision: str = "", *, weights: bool = False) -> str:
    """Find the folder of a shipped model, a finished run, a folder or a hub id.

    Args:
        key: config key, for messages.
        path: its value.
        revision: branch, tag or commit of a hub id.
        weights: fetch the weights of a hub id too.

    Raises:
        ModelError: the folder is a run that is not finished, or the hub id cannot be fetched.
    """
    if path == SHIPPED:
        return str(shipped_model(path))
    folder = Path(path).expanduser()
    if folder.is_dir():
        return str(resolve_run(folder).absolute())
    return str(hub.fetch_model(key, path, revision, weights=weights))

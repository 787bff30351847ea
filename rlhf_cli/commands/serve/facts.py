"""What a server must know of a result: read from the small files of its folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_cli.errors import ConfigError, ModelError
from rlhf_cli.runs import artifact, model_checks
from rlhf_cli.runs.artifact import ADAPTER_CONFIG, read_adapter_base, read_model_json

STACKED_PREFIX = "stacked_"


@dataclass(frozen=True)
class Served:
    """A result to serve.

    Attributes:
        given: run, folder or hub id, as the user typed it.
        folder: folder with the weights or the adapter, or the hub id.
        name: name of the model in requests.
        base: folder or hub id of an adapter's base; empty for whole weights.
        adapter: `adapter_config.json`; empty for whole weights.
        stacked: whether the adapter stands on another one.
        whole_weights: whether the adapter holds whole layers or rows of embeddings too.
        scores: whether it is a reward model.
        quant: quantization of the base in training: `none`, `nf4` or `int8`.
        dtype: of the weights, as in `bfloat16`; empty if unknown.
        positions: longest row, in tokens; 0 if unknown.
        chats: whether prompts are rendered by the chat template.
        ends: texts of the tokens that end a response.
        architecture: class of the weights, as in `LlamaForCausalLM`; empty if unknown.
    """

    given: str
    folder: str
    name: str
    base: str
    adapter: dict[str, Any]
    stacked: bool
    whole_weights: bool
    scores: bool
    quant: str
    dtype: str
    positions: int
    chats: bool
    ends: tuple[str, ...]
    architecture: str

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter."""
        return bool(self.base)

    @property
    def rank(self) -> int:
        """Largest rank of the adapter; 0 for whole weights."""
        ranks = [self.adapter.get("r") or 0, *(self.adapter.get("rank_pattern") or {}).values()]
        return int(max(ranks))

    @property
    def needs_merge(self) -> str:
        """Why no server takes the adapter as it is; empty if servers with LoRA support do."""
        if not self.is_adapter:
            return ""
        if self.scores:
            return "the head of a reward model is beside the adapter"
        if self.stacked:
            return "it stands on another adapter"
        if self.adapter.get("use_dora"):
            return "DoRA"
        if self.whole_weights:
            return "it holds whole layers or new tokens"
        return ""


def read_served(given: str) -> Served:
    """Read the facts of a run, model folder or hub id whose files are here.

    Raises:
        ConfigError: there is no such folder, or it holds no model.
    """
    folder = find_folder(given)
    facts, config = artifact.read(folder), read_model_json(folder)
    adapter = read_model_json(folder, ADAPTER_CONFIG)
    shapes = model_checks.read_weight_shapes(folder)
    base = _base(given, folder) if adapter else ""
    config = config or dict(model_checks.read_base_config(given))
    if not config and not adapter:
        raise ConfigError(
            f"{given}: no config.json in {folder}; need a run, a model folder or a hub id that was "
            "fetched"
        )
    return Served(
        given=given,
        folder=str(folder) if os.path.isdir(os.path.expanduser(given)) else given,
        name=served_name(given),
        base=base,
        adapter=adapter,
        stacked=any(folder.glob(f"{STACKED_PREFIX}*/{ADAPTER_CONFIG}")),
        whole_weights=bool(adapter) and any(".lora_" not in name for name in shapes),
        scores=artifact.is_reward_model(given),
        quant=str(facts.get("quant", "none")),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or ""),
        positions=model_checks.max_positions(config) or 0,
        chats=has_chat_template(folder) and facts.get("trained_on") != "text",
        ends=tuple(end_texts(folder, config)),
        architecture=next(iter(config.get("architectures") or []), ""),
    )


def find_folder(given: str) -> Path:
    """Folder with the files of a result.

    Raises:
        ConfigError: there is none, or the run is not finished.
        ModelError: the run is not finished.
    """
    try:
        folder = artifact.find_model_folder(given)
    except ModelError as error:
        raise ConfigError(f"{error}; then give this command again") from None
    if folder is None or not folder.is_dir():
        raise ConfigError(
            f"{given}: no such run or model folder here, and no files of such a hub id; need a "
            "finished run. Try rlhf serve runs/sft"
        )
    return folder.absolute()


def _base(given: str, folder: Path) -> str:
    """The base of an adapter as a server finds it: a folder, or a hub id."""
    found = model_checks.find_base_folder(given)
    named, _ = read_adapter_base(folder)
    if named and not os.path.isabs(named):
        return named
    if found is None:
        raise ConfigError(
            f"{given}: an adapter whose base {named or '(not named)'} is not here; need it. "
            f"Try rlhf merge {given} model.base=FOLDER output_dir=FOLDER-merged"
        )
    return str(found)


def served_name(given: str) -> str:
    """Last part of the path of a run, or of a hub id."""
    path = Path(given).expanduser().absolute()
    return path.parent.name if path.name == "model" else path.name


def has_chat_template(folder: Path) -> bool:
    """Whether the folder has a chat template of its own."""
    inside = read_model_json(folder, "tokenizer_config.json").get("chat_template")
    return bool(inside) or (folder / "chat_template.jinja").is_file()


def end_texts(folder: Path, config: dict[str, Any]) -> list[str]:
    """Texts of the end tokens that the generation config or the config lists."""
    listed = read_model_json(folder, "generation_config.json").get("eos_token_id")
    listed = config.get("eos_token_id") if listed is None else listed
    ids = listed if isinstance(listed, list) else [listed]
    added = read_model_json(folder, "tokenizer.json").get("added_tokens") or []
    texts = {token.get("id"): token.get("content") for token in added}
    return [str(texts[one]) for one in ids if texts.get(one)]

"""Write a policy's current weights to a folder that servers load."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from rlhf_cli.distributed.process_group import raising_rank_failed
from rlhf_cli.distributed.ranks import SINGLE_PROCESS, Ranks
from rlhf_cli.errors import ConfigError
from rlhf_cli.models.adapters import TRAINED_ADAPTER, Adapters, adapter_kind
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.sharding import gather_by_name
from rlhf_cli.models.weight_files import save_weights
from rlhf_cli.rollout.server.hand_over import Kind
from rlhf_cli.runs.run_files import read_json

MAX_RANK = 512
"""Largest rank of an adapter that vLLM loads."""

UNTIED_FILES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
"""Names of a model's only file, and of one for an output layer beside the embeddings it is tied to.

With the index they are what transformers reads as a model of several files.
"""

MODEL_PREFIX = "model."
"""Prefix of the parameters of the transformers model within a policy."""


def choose_kind(sync: str, policy: Policy, *, sharded: bool) -> Kind:
    """Choose what is handed over: the trained adapter, or whole weights.

    Args:
        sync: `rollout.sync`.
        policy: with adapters or without.
        sharded: whether the processes share the weights.

    Raises:
        ConfigError: what `sync` asks for cannot be done with this policy.
    """
    if policy.adapters is None:
        if sync == "adapter":
            raise ConfigError(
                "rollout.sync: got adapter; the run trains whole weights. Try rollout.sync=weights"
            )
        return "weights"
    unloadable = adapter_problem(policy.adapters)
    if sync == "adapter" and unloadable:
        raise ConfigError(
            f"rollout.sync: got adapter; servers cannot load this one, {unloadable}. "
            "Try rollout.sync=weights"
        )
    if sync == "adapter" or (sync == "auto" and not unloadable):
        return "adapter"
    problem = merge_problem(policy, sharded=sharded)
    if problem:
        why = f"servers cannot load the adapter, {unloadable}, and " if sync == "auto" else ""
        raise ConfigError(
            f"rollout.sync: got {sync}; {why}it cannot be merged, {problem}. Need a plain adapter. "
            f"Try {'adapter=lora' if unloadable else 'rollout.sync=adapter'}"
        )
    return "weights"


def adapter_problem(adapters: Adapters) -> str:
    """Say why servers cannot load the policy's adapter; empty where they can."""
    names = adapters.roles["policy"]
    if list(names) != [TRAINED_ADAPTER]:
        return f"because it stands on {len(names) - 1} other adapters"
    config = adapters.model.peft_config[TRAINED_ADAPTER]
    if adapter_kind(config) == "dora":
        return "because it is a DoRA adapter"
    if config.r > MAX_RANK:
        return f"because its rank is {config.r}, more than {MAX_RANK}"
    if config.modules_to_save or config.trainable_token_indices or adapters.whole_embeddings:
        return "because it has whole layers or rows of single tokens"
    return "because it is on experts" if config.target_parameters else ""


def merge_problem(policy: Policy, *, sharded: bool) -> str:
    """Say why adapters cannot be merged into a copy of the weights; empty where they can."""
    if sharded:
        return "because processes share the weights"
    base = policy.model
    if not all(param.is_floating_point() for param in base.parameters()):
        return "because the base is quantized"
    others = (ModulesToSaveWrapper, TrainableTokensWrapper)
    if any(isinstance(module, others) for module in base.modules()):
        return "because it has whole layers or rows of single tokens"
    config = policy.adapters.model.peft_config if policy.adapters is not None else {}
    return (
        "because it is on experts" if any(one.target_parameters for one in config.values()) else ""
    )


class PolicyWriter:
    """Writes the policy's current weights, as its forward pass takes them.

    Args:
        policy: its parameters may be shards.
        tokenizer: written beside the first weights, with which a server may be started.
        kind: the trained adapter, or whole weights.
        dtype: of whole weights.
        ranks: the processes that train.
        sharded: whether they share the weights.
        untied: write an output layer that is tied to the embeddings as a weight of its own.
    """

    def __init__(
        self,
        policy: Policy,
        tokenizer: Any,
        kind: Kind,
        dtype: torch.dtype,
        ranks: Ranks = SINGLE_PROCESS,
        *,
        sharded: bool = False,
        untied: bool = False,
    ) -> None:
        self.policy, self.tokenizer, self.kind = policy, tokenizer, kind
        self.dtype, self.ranks, self.sharded, self.untied = dtype, ranks, sharded, untied
        self._has_tokenizer = False

    def __call__(self, folder: Path) -> None:
        """Write the weights to a new folder; all ranks call it together."""
        adapters = self.policy.adapters
        if self.kind == "adapter":
            assert adapters is not None
            self.ranks.run_on_main(partial(adapters.save, folder))
            return
        if adapters is not None:
            self.ranks.run_on_main(partial(_write_merged, self.policy, folder, self.dtype))
        elif self.sharded:
            save_weights(self.policy.model, folder, self.dtype, self._gather, self.ranks)
        else:
            self.ranks.run_on_main(partial(save_weights, self.policy.model, folder, self.dtype))
        if self.untied:
            self.ranks.run_on_main(partial(untie, folder, tied_output(self.policy)))
        if not self._has_tokenizer:
            self.ranks.run_on_main(partial(self.tokenizer.save_pretrained, folder))
            self._has_tokenizer = True

    def _gather(self, name: str) -> Tensor:
        with raising_rank_failed():
            return gather_by_name(self.policy, {}, f"{MODEL_PREFIX}{name}")


def tied_output(policy: Policy) -> dict[str, str]:
    """Name of the output layer's weight -> that of the embeddings it is tied to, as in files."""
    base = policy.adapters.model.get_base_model() if policy.adapters else policy.model
    if not base.config.get_text_config().tie_word_embeddings:
        return {}
    names = dict(base.named_parameters(remove_duplicate=False))
    output = base.get_output_embeddings()
    tied = base._tied_weights_keys or {}
    return {name: source for name, source in tied.items() if names.get(name) is output.weight}


def untie(folder: Path, tied: Mapping[str, str]) -> None:
    """Store tied output layers of a folder beside the embeddings, and say so in its config.

    A vLLM on a CPU computes with a packed copy of the output layer, which it renews only where the
    weights that it reads have one (seen in 0.32.0): with tied embeddings it answers by the old one.

    Args:
        folder: a model in safetensors.
        tied: name of the output layer's weight -> that of the embeddings.
    """
    if not tied:
        return
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    content = read_json(index) if index.exists() else _indexed(folder)
    found: dict[str, Tensor] = {}
    for name, source in tied.items():
        with safe_open(folder / content["weight_map"][source], "pt") as stored:
            found[name] = stored.get_tensor(source)
    save_file(found, folder / UNTIED_FILES[1], {"format": "pt"})
    content["weight_map"] |= dict.fromkeys(found, UNTIED_FILES[1])
    index.write_text(json.dumps(content), encoding="utf-8")
    config = folder / CONFIG_NAME
    content = read_json(config)
    for part in (content, content.get("text_config", {})):
        part["tie_word_embeddings"] = False
    config.write_text(json.dumps(content), encoding="utf-8")


def _indexed(folder: Path) -> dict[str, Any]:
    """Give a model's only file the name of the first of several, and return their index."""
    file = (folder / SAFE_WEIGHTS_NAME).rename(folder / UNTIED_FILES[0])
    with safe_open(file, "pt") as stored:
        return {"metadata": {}, "weight_map": dict.fromkeys(stored.keys(), file.name)}


def _write_merged(policy: Policy, folder: Path, dtype: torch.dtype) -> None:
    """Write whole weights with the policy's adapters added to them; the policy stays as it is.

    A plain model of the same shape, without memory, gives names and configs.
    """
    assert policy.adapters is not None
    base = policy.adapters.model.get_base_model()
    names = list(policy.adapters.roles["policy"])
    with torch.device("meta"):
        plain = type(base)(copy.deepcopy(base.config))
    plain.generation_config = copy.deepcopy(base.generation_config)
    modules = dict(base.named_modules())
    own: dict[str, Tensor] = {
        **dict(base.named_parameters(remove_duplicate=False)),
        **dict(base.named_buffers()),
    }

    def merged(name: str) -> Tensor:
        path, _, last = name.rpartition(".")
        layer = modules[path]
        if not isinstance(layer, LoraLayer):
            return own[name].detach()
        if last != "weight":
            return own[f"{path}.base_layer.{last}"].detach()
        alone = copy.deepcopy(layer)  # PEFT merges in place, and subtracting again would round
        alone.merge(adapter_names=names)
        found: Tensor = alone.get_base_layer().weight.detach()
        return found

    save_weights(plain, folder, dtype, merged)

"""`Adapters`: the adapters on a base model, and which of them are active for each role.

PEFT's own `set_adapter` between a forward and a backward pass silently turns off the gradients of
the adapters that it deactivates. Here only the list of active names changes, never `requires_grad`,
and recomputed activations use the list of their first pass. No other code switches adapters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import nn

from rlhf_cli.models.adapters_on_shards import hold_whole, unread_base
from rlhf_cli.models.resolve import ModelSource

TRAINED_ADAPTER = "default"
"""PEFT's name for the adapter that is saved in a folder itself, not in a folder below it."""

TOKEN_ROWS_KEY = ".trainable_tokens_delta"
"""Part of the names of the embedding rows that PEFT trains for single tokens."""


class Adapters:
    """The adapters on one base, by role.

    Attributes:
        model: the PEFT model around the base.
        source: the base, and the adapters that were loaded on it.
        roles: role -> names of its adapters, in order; an empty list is the base alone.
        whole_embeddings: one of the adapters came with whole input embeddings or a whole output
            layer, which replaced the base's and are saved again.
    """

    def __init__(
        self,
        model: Any,
        source: ModelSource,
        roles: Mapping[str, Sequence[str]],
        *,
        whole_embeddings: bool = False,
    ) -> None:
        self.model, self.source = model, source
        self.roles, self.whole_embeddings = dict(roles), whole_embeddings
        self._find_layers()
        for name, param in model.named_parameters():
            param.requires_grad_(f".{TRAINED_ADAPTER}." in f"{name}.")
            if TOKEN_ROWS_KEY in name:  # whole embeddings, not a difference that decay can shrink
                param.no_weight_decay = True
        self._activate(self.roles["policy"])

    @contextmanager
    def use(self, role: str) -> Iterator[None]:
        """Activate the adapters of a role inside the context."""
        with self._activated(self.roles[role]):
            yield

    def clone_adapter(self, role: str, *, trained: bool) -> None:
        """Give a role a copy of the policy's trained adapter as it is now.

        Args:
            role: a new one.
            trained: train the copy too; else it is frozen.
        """
        names = [adapter_name(role) if n == TRAINED_ADAPTER else n for n in self.roles["policy"]]
        config = copy.deepcopy(self.model.peft_config[TRAINED_ADAPTER])
        self.add(role, names, config, trained=trained)
        for clone, original in self.cloned_params(role).values():
            clone.data = original.data.clone()

    def cloned_params(self, role: str) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        """Map the name of each trained parameter to the role's copy of it, and itself."""
        params = dict(self.model.named_parameters())
        own = f".{adapter_name(role)}"
        clones = {name: name.replace(f".{TRAINED_ADAPTER}", own) for name in params}
        return {n: (params[clone], params[n]) for n, clone in clones.items() if clone != n}

    def add(self, role: str, names: Sequence[str], config: Any, *, trained: bool) -> None:
        """Give a role a new adapter, named `adapter_name(role)`, whose values the caller sets.

        Args:
            role: a new one.
            names: its active adapters, in order, the new one among them.
            config: PEFT's config of the new one.
            trained: whether it is trained.
        """
        before = {name: param.requires_grad for name, param in self.model.named_parameters()}
        with unread_base(self.model):
            self.model.add_adapter(adapter_name(role), config)
        hold_whole(self.model, adapter_name(role))
        for name, param in self.model.named_parameters():
            param.requires_grad_(before.get(name, trained))  # PEFT changes those of others too
        self._find_layers()
        self.roles[role] = list(names)
        self._activate(self._active)

    def _find_layers(self) -> None:
        modules = list(self.model.modules())
        self._rows = [m for m in modules if isinstance(m, TrainableTokensWrapper)]
        own = {rows.token_adapter for rows in self._rows}
        self._layers = [m for m in modules if isinstance(m, BaseTunerLayer) and m not in own]
        self._whole = [m for m in modules if isinstance(m, ModulesToSaveWrapper)]

    def adapter_params(self, role: str) -> list[nn.Parameter]:
        """List the parameters of the adapter named after a role."""
        named = self.model.named_parameters()
        return [param for name, param in named if f".{adapter_name(role)}." in f"{name}."]

    def saved_params(self) -> list[nn.Parameter]:
        """List the parameters that belong to an adapter, and embeddings that are saved again."""
        names = [f".{name}." for name in self.model.peft_config]
        named = self.model.named_parameters()
        found = [param for name, param in named if any(own in f"{name}." for own in names)]
        if self.whole_embeddings:
            base = self.model.get_base_model()
            layers = (base.get_input_embeddings(), base.get_output_embeddings())
            found += [
                param for layer in layers if layer is not None for param in layer.parameters()
            ]
        return found

    def recompute_context(
        self,
    ) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Build the contexts of a forward pass and of its recomputation, for checkpointing."""
        return nullcontext(), self._activated(self._active)

    @contextmanager
    def _activated(self, names: Sequence[str]) -> Iterator[None]:
        before = self._active
        self._activate(names)
        try:
            yield
        finally:
            self._activate(before)

    def _activate(self, names: Sequence[str]) -> None:
        self._active = list(names)
        for layer in self._layers:
            layer._active_adapter = list(names)
        for layer in self._whole:  # the last of several copies counts; without one, the original
            copies = [name for name in names if name in layer.modules_to_save]
            layer._active_adapter = copies[-1] if copies else []
        for wrapper in self._rows:  # PEFT fails on an adapter without rows
            having = [name for name in names if name in wrapper.token_adapter.token_indices]
            wrapper._active_adapter = wrapper.token_adapter._active_adapter = having

    def describe(self) -> str:
        """Describe the trained adapter: kind, rank, number of layers and of token rows."""
        config = self.model.peft_config[TRAINED_ADAPTER]
        count = sum(TRAINED_ADAPTER in layer.lora_A for layer in self._layers)
        indices = [w.token_adapter.token_indices.get(TRAINED_ADAPTER, ()) for w in self._rows]
        ids = {index for found in indices for index in found}
        rows = f" and the embeddings of {len(ids)} tokens" if ids else ""
        return f"{adapter_kind(config)} of rank {config.r} on {count} layers{rows}"

    def folders(self) -> list[str]:
        """List the folders, relative to a run, that the policy's adapters are saved in."""
        names = self.roles["policy"]
        return ["model" if name == TRAINED_ADAPTER else f"model/{name}" for name in names]

    def save(self, folder: Path) -> None:
        """Write the policy's adapters in PEFT's format, the trained one in the folder itself."""
        names = list(self.roles["policy"])
        for name in names:
            self.model.peft_config[name].base_model_name_or_path = self.source.base
            self.model.peft_config[name].revision = self.source.commit or None
        # PEFT's "auto" would save whole embeddings whenever tokens were added
        self.model.save_pretrained(
            folder, selected_adapters=names, save_embedding_layers=self.whole_embeddings
        )


def adapter_name(role: str) -> str:
    """Return PEFT's name for the adapter that belongs to a role alone."""
    return f"for_{role}"


def adapter_kind(config: Any) -> str:
    """Return `lora`, `dora` or `rslora` for PEFT's config of an adapter."""
    return "dora" if config.use_dora else "rslora" if config.use_rslora else "lora"

"""The adapters on a base: which are active for which role. Nothing else switches them.

PEFT's own `set_adapter` between a forward and a backward pass turns off the gradients of the
adapters it leaves, in silence. Here only the list of active names changes, never `requires_grad`,
and recomputed activations see the list of their first pass.
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

from rlhf_cli.models.resolve import Source

TRAINED = "default"
"""PEFT's name for the adapter that stands in a folder itself, not below it."""

TOKEN_ROWS = ".trainable_tokens_delta"
"""In the names of what PEFT trains of single tokens: their rows of an embedding or output layer."""


class Adapters:
    """The adapters on one base, and which of them are active for each role.

    Attributes:
        model: the PEFT model around the base.
        source: the base, and what stood on it.
        roles: role -> names of its adapters, in order; none at all is the base alone.
        whole_embeddings: one of the adapters came with whole input embeddings or a whole output
            layer, which took the place of the base's and are saved again.
    """

    def __init__(
        self,
        model: Any,
        source: Source,
        roles: Mapping[str, Sequence[str]],
        *,
        whole_embeddings: bool = False,
    ) -> None:
        self.model, self.source = model, source
        self.roles, self.whole_embeddings = dict(roles), whole_embeddings
        self._find_layers()
        for name, param in model.named_parameters():
            param.requires_grad_(f".{TRAINED}." in f"{name}.")
            if TOKEN_ROWS in name:  # whole embeddings of tokens, not a change that decay makes less
                param.undecayed = True
        self._activate(self.roles["policy"])

    @contextmanager
    def using(self, role: str) -> Iterator[None]:
        """Let a role's adapters be active, then those that were before."""
        before = self._active
        self._activate(self.roles[role])
        try:
            yield
        finally:
            self._activate(before)

    def twin(self, role: str, *, trained: bool) -> None:
        """Give a role adapters of its own, which are now what the policy's trained one is.

        Args:
            role: a new one.
            trained: train the twin too; else it stays as it is.
        """
        names = [own_name(role) if n == TRAINED else n for n in self.roles["policy"]]
        self.add(role, names, copy.deepcopy(self.model.peft_config[TRAINED]), trained=trained)
        for own, policy in self.twins_of(role).values():
            own.data = policy.data.clone()

    def twins_of(self, role: str) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        """Name of each parameter of the trained adapter -> its twin's, and itself."""
        params = dict(self.model.named_parameters())
        twins = {name: name.replace(f".{TRAINED}", f".{own_name(role)}") for name in params}
        return {n: (params[twin], params[n]) for n, twin in twins.items() if twin != n}

    def add(self, role: str, names: Sequence[str], config: Any, *, trained: bool) -> None:
        """Give a role a new adapter, called `own_name(role)`.

        Args:
            role: a new one.
            names: the adapters that are active for it, in order; the new one among them.
            config: PEFT's description of the new one.
            trained: whether it is trained.
        """
        before = {name: param.requires_grad for name, param in self.model.named_parameters()}
        self.model.add_adapter(own_name(role), config)
        for name, param in self.model.named_parameters():
            param.requires_grad_(before.get(name, trained))  # adding one changes those of others
        self._find_layers()
        self.roles[role] = list(names)
        self._activate(self._active)

    def _find_layers(self) -> None:
        modules = list(self.model.modules())
        self._rows = [m for m in modules if isinstance(m, TrainableTokensWrapper)]
        own = {rows.token_adapter for rows in self._rows}
        self._layers = [m for m in modules if isinstance(m, BaseTunerLayer) and m not in own]
        self._whole = [m for m in modules if isinstance(m, ModulesToSaveWrapper)]

    def params_of(self, role: str) -> list[nn.Parameter]:
        """The parameters of the adapter that a role has of its own."""
        named = self.model.named_parameters()
        return [param for name, param in named if f".{own_name(role)}." in f"{name}."]

    def recompute_context(
        self,
    ) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For activation checkpointing: what surrounds a forward pass and its recomputation."""
        return nullcontext(), self._restored(self._active)

    @contextmanager
    def _restored(self, names: Sequence[str]) -> Iterator[None]:
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
        for layer in self._whole:  # of several copies the last one counts; of none, the original
            copies = [name for name in names if name in layer.modules_to_save]
            layer._active_adapter = copies[-1] if copies else []
        for wrapper in self._rows:  # rows of different tokens; PEFT knows no adapter without rows
            having = [name for name in names if name in wrapper.token_adapter.token_indices]
            wrapper._active_adapter = wrapper.token_adapter._active_adapter = having

    def describe(self) -> str:
        """The trained adapter in words."""
        config = self.model.peft_config[TRAINED]
        count = sum(TRAINED in layer.lora_A for layer in self._layers)
        ids = {i for w in self._rows for i in w.token_adapter.token_indices.get(TRAINED, ())}
        rows = f" and the embeddings of {len(ids)} tokens" if ids else ""
        return f"{kind_of(config)} of rank {config.r} on {count} layers{rows}"

    def folders(self) -> list[str]:
        """Where in a run folder each of the policy's adapters is saved, in order."""
        return ["model" if n == TRAINED else f"model/{n}" for n in self.roles["policy"]]

    def save(self, folder: Path) -> None:
        """Write the policy's adapters as PEFT reads them, the trained one in the folder itself."""
        names = list(self.roles["policy"])
        for name in names:
            self.model.peft_config[name].base_model_name_or_path = self.source.base
            self.model.peft_config[name].revision = self.source.commit or None
        # not PEFT's "auto", which saves all of them where there is room for new tokens
        self.model.save_pretrained(
            folder, selected_adapters=names, save_embedding_layers=self.whole_embeddings
        )


def own_name(role: str) -> str:
    """PEFT's name for the adapter that a role has of its own."""
    return f"for_{role}"


def kind_of(config: Any) -> str:
    """`lora`, `dora` or `rslora`: what PEFT's description of an adapter amounts to."""
    return "dora" if config.use_dora else "rslora" if config.use_rslora else "lora"

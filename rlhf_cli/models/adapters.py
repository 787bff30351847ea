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

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from rlhf_cli.models.source import Source

TRAINED = "default"
"""PEFT's name for the adapter that stands in a folder itself, not below it."""


class Adapters:
    """The adapters on one base, and which of them are active for each role.

    Attributes:
        model: the PEFT model around the base.
        source: the base, and what stood on it.
        roles: role -> names of its adapters, in order; none at all is the base alone.
        new_tokens: ids whose embeddings are trained beside the adapter.
    """

    def __init__(
        self,
        model: Any,
        source: Source,
        roles: Mapping[str, Sequence[str]],
        new_tokens: Sequence[int] = (),
    ) -> None:
        self.model, self.source = model, source
        self.roles, self.new_tokens = dict(roles), tuple(new_tokens)
        self._find_layers()
        for name, param in model.named_parameters():
            param.requires_grad_(f".{TRAINED}." in f"{name}.")
        if new_tokens:
            _train_rows(model.get_input_embeddings().weight, new_tokens)
            output = model.get_output_embeddings()
            if output is not None:  # a reward model has none
                _train_rows(output.weight, new_tokens)
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
        self._layers = [m for m in self.model.modules() if isinstance(m, BaseTunerLayer)]
        self._whole = [m for m in self.model.modules() if isinstance(m, ModulesToSaveWrapper)]

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

    def describe(self) -> str:
        """The trained adapter in words."""
        config = self.model.peft_config[TRAINED]
        count = sum(TRAINED in layer.lora_A for layer in self._layers)
        return f"{kind_of(config)} of rank {config.r} on {count} layers"

    def folders(self) -> list[str]:
        """Where in a run folder each of the policy's adapters is saved, in order."""
        return ["model" if n == TRAINED else f"model/{n}" for n in self.roles["policy"]]

    def save(self, folder: Path) -> None:
        """Write the policy's adapters as PEFT reads them, the trained one in the folder itself."""
        names = list(self.roles["policy"])
        for name in names:
            self.model.peft_config[name].base_model_name_or_path = self.source.base
            self.model.peft_config[name].revision = self.source.commit or None
        embeddings = bool(self.new_tokens)
        self.model.save_pretrained(
            folder, selected_adapters=names, save_embedding_layers=embeddings
        )


def own_name(role: str) -> str:
    """PEFT's name for the adapter that a role has of its own."""
    return f"for_{role}"


def kind_of(config: Any) -> str:
    """`lora`, `dora` or `rslora`: what PEFT's description of an adapter amounts to."""
    return "dora" if config.use_dora else "rslora" if config.use_rslora else "lora"


def _train_rows(weight: nn.Parameter, rows: Sequence[int]) -> None:
    """Train these rows of an embedding; the gradients of all others are zero."""
    if weight.requires_grad:
        return  # tied: the input and the output layer have the same
    weight.requires_grad_(True)
    kept = torch.zeros(len(weight), 1, dtype=torch.bool)
    kept[list(rows)] = True

    def only_those(gradient: Tensor) -> Tensor:
        return gradient * kept.to(gradient.device)

    weight.register_hook(only_those)
    weight.undecayed = True  # type: ignore[attr-defined]  # decay would move the other rows

"""Modules of a model by the names that users give them.

The parts of a model that read text, and those that read images or sound, which stay as they are.

A class such as Gemma3ForConditionalGeneration holds a language model beside a vision tower. Rows
are text alone here, so the tower has no gradient: with weight decay it would still change.

Layers that stay as they are while the rest of a model is trained.

The types that parameters are held in.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rlhf_cli.config.nearest import nearest
from rlhf_cli.context import say
from rlhf_cli.errors import ModelError
from rlhf_cli.models.policy import Policy


def modules_named(
    key: str,
    name: str,
    modules: Mapping[str, nn.Module],
    kind: str = "layer",
    otherwise: str = "[]",
) -> dict[str, nn.Module]:
    """The modules whose name is this one, or ends with it behind a dot; by their whole names.

    Args:
        key: what the user set.
        name: what it was set to.
        modules: whole name -> module.
        kind: what the modules are, in words.
        otherwise: what to advise where no name is near.

    Raises:
        ModelError: there is none; it names the key, the modules and the nearest.
    """
    found = {n: module for n, module in modules.items() if n == name or n.endswith(f".{name}")}
    if not found:
        whole = [full for full in modules if full]
        endings = {full.rpartition(".")[2] for full in whole if not full[-1].isdigit()}
        close = nearest(name, [*endings, *whole], 0.4)
        raise ModelError(
            f"{key}: got {name}; no {kind} has that name, the model has "
            f"{', '.join(sorted(endings))}. Try {key}={f'[{close}]' if close else otherwise}"
        )
    return found


def language_parts(model: Any) -> list[nn.Module]:
    """The modules that a text goes through; the model itself where it reads nothing but text."""
    text = model.config.get_text_config()
    if text is model.config:
        return [model]
    decoder = model.get_decoder()
    heads = [model.get_output_embeddings(), getattr(model, "score", None)]
    return [decoder, *(head for head in heads if head is not None)]


def other_parts(model: Any) -> list[str]:
    """Names of the outermost modules that no text goes through, as `model.vision_tower`."""
    kept = {id(module) for part in language_parts(model) for module in part.modules()}
    found: list[str] = []

    def visit(module: nn.Module, name: str) -> None:
        for child_name, child in module.named_children():
            full = f"{name}.{child_name}" if name else child_name
            if id(child) in kept:
                continue
            if any(id(inner) in kept for inner in child.modules()):
                visit(child, full)
            else:
                found.append(full)

    if id(model) not in kept:
        visit(model, "")
    return found


def freeze_other_parts(model: Any) -> None:
    """Train the language model alone; one line where there is anything else."""
    names = other_parts(model)
    for name in names:
        model.get_submodule(name).requires_grad_(False)
    if names:
        say(f"text alone is read: {', '.join(names)} stay as they are")


def others_pattern(model: Any) -> str | None:
    """A regular expression of the names of all modules that no text goes through, for PEFT."""
    names = other_parts(model)
    whole = "|".join(re.escape(name) for name in names)
    return rf"({whole})(\..*)?" if names else None


def freeze(model: nn.Module, names: Sequence[str], dtype: torch.dtype) -> None:
    """Freeze the layers of these names, and hold them in the compute type.

    Args:
        model: all of it is trained.
        names: of modules, whole or from a dot on: `layers.0` is `model.layers.0`.
        dtype: of the forward passes.

    Raises:
        ModelError: a name is no layer's, or nothing would be trained.
    """
    modules = dict(model.named_modules())
    for name in names:
        for module in modules_named("model.freeze", name, modules).values():
            module.requires_grad_(False)
    params = list(model.parameters())
    frozen = [param for param in params if not param.requires_grad]
    if len(frozen) == len(params):
        raise ModelError(
            f"model.freeze: {', '.join(names)} hold all parameters; need some to train. "
            "Try fewer layers"
        )
    for param in frozen:
        param.data = param.data.to(dtype)
    count, whole = (sum(p.numel() for p in some) for some in (frozen, params))
    size = sum(param.numel() * param.element_size() for param in frozen)
    say(
        f"frozen: {count:,} of these, {size / 1e6:,.1f} MB ({', '.join(names)}); "
        f"{whole - count:,} parameters trained"
    )


@contextmanager
def as_computed(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Hold trained parameters in the compute type inside, as the forward passes of training do."""
    trained = [p for p in module.parameters() if p.requires_grad and p.is_floating_point()]
    before = [p.data for p in trained]
    lower(trained, dtype)
    try:
        yield
    finally:
        for param, data in zip(trained, before, strict=True):
            param.data = data


@contextmanager
def without_own_gradients(module: nn.Module) -> Iterator[None]:
    """Compute gradients of inputs alone inside, none of parameters: it takes less memory."""
    trained = [param for param in module.parameters() if param.requires_grad]
    for param in trained:
        param.requires_grad_(False)
    try:
        yield
    finally:
        for param in trained:
            param.requires_grad_(True)


def frozen_copy(policy: Policy, dtype: torch.dtype) -> Policy:
    """The same model as it is now, for good: in the compute type, without gradients.

    Parameters are copied into that type one by one, so that no copy exists in another.
    """
    copies: dict[int, object] = {}
    for param in policy.parameters():
        if param.is_floating_point():
            values = param.detach().to(dtype, copy=True)
            copies[id(param)] = nn.Parameter(values, requires_grad=False)
    return copy.deepcopy(policy, copies).requires_grad_(False)


def lower(params: Iterable[nn.Parameter], dtype: torch.dtype) -> None:
    """Hold parameters in another type, save those that are packed in integers."""
    for param in params:
        if param.is_floating_point():
            param.data = param.data.to(dtype)

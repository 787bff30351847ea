"""A model's parameters: find modules by name, freeze them, and cast them to another type."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from rlhf_cli.config.suggest import nearest
from rlhf_cli.console import logger
from rlhf_cli.errors import ModelError
from rlhf_cli.models.sharding import shards_of

Module = TypeVar("Module", bound=nn.Module)


def find_modules(
    key: str,
    name: str,
    modules: Mapping[str, nn.Module],
    kind: str = "layer",
    otherwise: str = "[]",
) -> dict[str, nn.Module]:
    """Find the modules whose full name is `name`, or ends with it after a dot.

    Args:
        key: config key, for the message.
        name: its value.
        modules: full name -> module.
        kind: noun for the modules.
        otherwise: value to suggest where no name is near.

    Raises:
        ModelError: there is none; it names the key, the modules and the nearest name.
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


def text_modules(model: Any) -> list[nn.Module]:
    """List the modules that text passes through; the model itself where it reads text only."""
    text = model.config.get_text_config()
    if text is model.config:
        return [model]
    decoder = model.get_decoder()
    heads = [model.get_output_embeddings(), getattr(model, "score", None)]
    return [decoder, *(head for head in heads if head is not None)]


def non_text_modules(model: Any) -> list[str]:
    """List the outermost modules that no text passes through, as `model.vision_tower`."""
    kept = {id(module) for part in text_modules(model) for module in part.modules()}
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


def non_text_pattern(model: Any) -> str | None:
    """Build a regular expression for the names of all modules that no text passes through."""
    names = non_text_modules(model)
    whole = "|".join(re.escape(name) for name in names)
    return rf"({whole})(\..*)?" if names else None


def freeze_non_text_modules(model: Any) -> None:
    """Freeze vision and audio modules, as in Gemma3ForConditionalGeneration; print their names.

    Rows are text only, so that these modules have no gradient, but weight decay would change them.
    """
    names = non_text_modules(model)
    for name in names:
        model.get_submodule(name).requires_grad_(False)
    if names:
        logger.info(f"text alone is read: {', '.join(names)} are not trained")


def freeze_modules(model: nn.Module, names: Sequence[str], dtype: torch.dtype) -> None:
    """Freeze the modules of these names, and cast them to the compute type.

    Args:
        model: trained fully.
        names: of modules, in full or from a dot on: `layers.0` is `model.layers.0`.
        dtype: compute type.

    Raises:
        ModelError: no module has the name, or nothing would be trained.
    """
    modules = dict(model.named_modules())
    for name in names:
        for module in find_modules("model.freeze", name, modules).values():
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
    logger.info(
        f"frozen: {count:,} of these, {size / 1e6:,.1f} MB ({', '.join(names)}); "
        f"{whole - count:,} parameters trained"
    )


def cast_params(params: Iterable[nn.Parameter], dtype: torch.dtype) -> None:
    """Cast parameters in place, except quantized ones, which are integers."""
    for param in params:
        if param.is_floating_point():
            param.data = param.data.to(dtype)


@contextmanager
def cast_for_compute(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Cast trained parameters to the compute type inside the context, as training does.

    Sharded ones are cast whenever they are gathered.
    """
    trained = [
        p
        for p in shards_of(module).values()
        if p.requires_grad and p.is_floating_point() and not isinstance(p, DTensor)
    ]
    before = [p.data for p in trained]
    cast_params(trained, dtype)
    try:
        yield
    finally:
        for param, data in zip(trained, before, strict=True):
            param.data = data


@contextmanager
def without_parameter_gradients(module: nn.Module) -> Iterator[None]:
    """Compute gradients of inputs only inside the context, which takes less memory.

    Sharded parameters keep theirs: FSDP2 reads at the first pass which of them are trained.
    """
    trained = [
        param
        for param in shards_of(module).values()
        if param.requires_grad and not isinstance(param, DTensor)
    ]
    for param in trained:
        param.requires_grad_(False)
    try:
        yield
    finally:
        for param in trained:
            param.requires_grad_(True)


def frozen_copy(module: Module, dtype: torch.dtype) -> Module:
    """Copy a module as it is now, frozen and in the compute type.

    Parameters are copied into that type one by one, so that no copy exists in another.
    """
    copies: dict[int, object] = {}
    for param in module.parameters():
        if param.is_floating_point():
            values = param.detach().to(dtype, copy=True)
            copies[id(param)] = nn.Parameter(values, requires_grad=False)
    return copy.deepcopy(module, copies).requires_grad_(False)

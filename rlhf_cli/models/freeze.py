"""Layers that stay as they are while the rest of a model is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from rlhf_cli.console import logger
from rlhf_cli.errors import ModelError
from rlhf_cli.models.named import modules_named


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
    logger.info(
        f"frozen: {count:,} of these, {size / 1e6:,.1f} MB ({', '.join(names)}); "
        f"{whole - count:,} parameters trained"
    )

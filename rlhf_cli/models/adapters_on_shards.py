"""Adapters that are added to a base whose weights are shared by processes already.

PEFT computes the first values of a new adapter from the base: norms for DoRA, copies of layers that
are trained whole, rows of embeddings. A new adapter on shards gets its values from another adapter
or from a file, so that the base need not be gathered for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@contextmanager
def unread_base(model: nn.Module) -> Iterator[None]:
    """Let PEFT add adapters to a sharded base without reading it; their values are set afterwards.

    Inside the context the norms of DoRA are 1, and rows of embeddings 0. A base that is not sharded
    is read as ever.
    """
    if not any(isinstance(param, DTensor) for param in model.parameters()):
        yield
        return
    norm, rows = DoraLinearLayer.get_weight_norm, TrainableTokensLayer.weight
    DoraLinearLayer.get_weight_norm = _ones
    TrainableTokensLayer.weight = property(_zeros)
    try:
        yield
    finally:
        DoraLinearLayer.get_weight_norm, TrainableTokensLayer.weight = norm, rows


def _ones(layer: Any, weight: Tensor, lora_weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return lora_weight.new_ones(len(lora_weight))


def _zeros(layer: Any) -> Tensor:
    base: Tensor = layer.get_base_layer().weight
    return torch.zeros((), dtype=base.dtype, device=base.device).expand(base.shape)


def hold_whole(model: nn.Module, adapter: str) -> None:
    """Make the parameters of an adapter whole on every process, and leave their values unset.

    Args:
        model: the PEFT model.
        adapter: PEFT's name of a new adapter; copies of sharded layers are sharded until here.
    """
    for name, param in list(model.named_parameters()):
        if f".{adapter}." in f"{name}." and isinstance(param, DTensor):
            owner, _, leaf = name.rpartition(".")
            values = torch.empty(param.shape, dtype=param.dtype, device=param.device)
            setattr(model.get_submodule(owner), leaf, nn.Parameter(values, param.requires_grad))

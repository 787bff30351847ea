"""The types that parameters are held in."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from rlhf_cli.models.policy import Policy


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

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


def frozen_copy(policy: Policy, dtype: torch.dtype) -> Policy:
    """The same model as it is now, for good: in the compute type, without gradients."""
    copied = copy.deepcopy(policy).requires_grad_(False)
    lower(copied.parameters(), dtype)
    return copied


def lower(params: Iterable[nn.Parameter], dtype: torch.dtype) -> None:
    """Hold parameters in another type, save those that are packed in integers."""
    for param in params:
        if param.is_floating_point():
            param.data = param.data.to(dtype)

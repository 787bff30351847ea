"""Build models whose weights stay in their files until each rank knows its own rows.

`deferred` changes what transformers gets for a weight: a `StoredTensor` in place of its values. The
model, the report of missing and unexpected names, tied weights and new heads are then those of
transformers itself, and no weight is read. When the parameters have been sharded, `fill` reads the
rows of this rank.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import modeling_utils

from rlhf_cli.distributed.shards import ShardLayout
from rlhf_cli.models.sharding import local_tensor
from rlhf_cli.models.stored_file import DTYPES, FileTensor
from rlhf_cli.models.stored_origin import Origin, fill_rows
from rlhf_cli.models.stored_tensor import StoredTensor, hold, parameter, replace_parameters


class _DeferredFile:
    """A safetensors file whose tensors are not read; takes the place of `safe_open`."""

    def __init__(self, file: str, target_device: torch.device) -> None:
        self._file, self._target_device = Path(file), target_device
        self._changed = self._file.stat().st_mtime_ns
        with safe_open(file, "pt") as opened:  # it checks the header and the size
            names = list(opened.keys())
            slices = {name: opened.get_slice(name) for name in names}
            self._facts = {
                name: (tuple(found.get_shape()), DTYPES[found.get_dtype()])
                for name, found in slices.items()
            }

    def keys(self) -> list[str]:
        return list(self._facts)

    def get_slice(self, name: str) -> StoredTensor:
        shape, dtype = self._facts[name]
        return StoredTensor.of(
            FileTensor(shape, dtype, self._file, name, self._changed), self._target_device
        )

    def __exit__(self, *_: object) -> None:
        """Do nothing: the file is closed."""


@contextlib.contextmanager
def deferred(device: torch.device | str) -> Iterator[None]:
    """Let `from_pretrained` build models without reading their weights, inside the context.

    Args:
        device: where the values will be.
    """
    target_device = torch.device(device)

    def open_deferred(file: Any, *_: object, **__: object) -> _DeferredFile:
        return _DeferredFile(str(file), target_device)

    def no_warmup(*_: object, **__: object) -> None:
        """Do nothing: it would allocate the bytes of the whole model on the device."""

    loading = {"safe_open": open_deferred, "caching_allocator_warmup": no_warmup}
    with exchanged(modeling_utils, **loading):
        yield


@contextlib.contextmanager
def exchanged(module: Any, **functions: Any) -> Iterator[None]:
    """Exchange functions of a module or class of transformers inside the context.

    Raises:
        AttributeError: this version of transformers has no such function.
    """
    before = {name: getattr(module, name) for name in functions}
    for name, function in functions.items():
        setattr(module, name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(module, name, function)


def require_deferred(model: nn.Module) -> None:
    """Check that no weight of a file was read.

    Raises:
        RuntimeError: transformers reads files in another way than `deferred` expects.
    """
    if not any(isinstance(param, StoredTensor) for param in model.parameters()):
        raise RuntimeError("transformers has read the weights, which were to stay in their files")


def shard_and_read(
    wrapper: nn.Module,
    shard: Callable[[Any], Mapping[str, ShardLayout]],
    device: torch.device,
) -> None:
    """Shard a module whose weights are still in their files, and read the rows of this rank.

    Args:
        wrapper: its parameters without values are on the meta device when they are sharded; those
            with values (adapters, a new head) keep them.
        shard: shards the parameters, and returns the rows of each that this rank holds.
        device: of the shards.
    """
    origins = hold(wrapper)
    layouts = shard(wrapper)
    allocate(wrapper, device)
    fill(wrapper, origins, layouts)


def fill(
    module: nn.Module, origins: Mapping[str, Origin], layouts: Mapping[str, ShardLayout]
) -> None:
    """Read the rows of this rank into the parameters of a module.

    Args:
        module: has memory for this rank's rows of each parameter, on its device.
        origins: parameter -> origin of the whole tensor; `hold` gives them.
        layouts: parameter -> the rows that this rank holds; a missing one is held whole.
    """
    params = dict(module.named_parameters())
    for name, origin in origins.items():
        local = local_tensor(params[name]).detach()
        layout = layouts.get(name)
        fill_rows(local, origin, 0 if layout is None else layout.start)


def allocate(module: nn.Module, device: torch.device) -> None:
    """Allocate memory for the parameters that have none; one that is tied stays one.

    Args:
        module: perhaps sharded by FSDP, which takes over the new parameters.
        device: of the memory.
    """
    found = {
        id(param): parameter(param, torch.empty_like(param, device=device))
        for param in module.parameters()
        if param.is_meta
    }
    replace_parameters(module, found)
    module._apply(lambda tensor: tensor)  # FSDP looks for changed parameters here

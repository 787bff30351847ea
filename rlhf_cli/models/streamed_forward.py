"""Run a model whose weights are still in their files: layer by layer, each read when it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from rlhf_cli.models.stored_tensor import StoredTensor, parameter, read

HELD = 512 * 1024**2
"""Bytes of weights that stay in memory from one forward pass to the next."""


@contextmanager
def streamed(model: nn.Module) -> Iterator[None]:
    """Let a model run inside the context, with the weights of one layer in memory at a time.

    Args:
        model: its parameters may be stored tensors; they are the same again afterwards.
    """
    readers = [_Reader(module, deep) for module, deep in _layers(model)]
    free = HELD
    for reader in readers:
        reader.keeps = reader.size <= free
        free -= reader.size if reader.keeps else 0
    try:
        for reader in readers:
            reader.attach()
        yield
    finally:
        for reader in readers:
            reader.detach()


class _Reader:
    """Reads the stored parameters of a module before it runs, and frees them after it.

    Attributes:
        size: bytes of the parameters.
        keeps: leave them in memory until `detach`.
    """

    def __init__(self, module: nn.Module, deep: bool) -> None:
        self.module, self.keeps = module, False
        owners = module.modules() if deep else [module]
        self._stored: list[tuple[nn.Module, str, nn.Parameter]] = [
            (owner, name, param)
            for owner in owners
            for name, param in owner._parameters.items()
            if param is not None and isinstance(param, StoredTensor)
        ]
        own: dict[int, Tensor] = {id(param): param for _, _, param in self._stored}
        self.size = sum(param.numel() * param.element_size() for param in own.values())
        self._is_read = False

    def attach(self) -> None:
        """Read before each call of the module from now on."""
        self._hooks = [
            self.module.register_forward_pre_hook(self._before),
            self.module.register_forward_hook(self._after, always_call=True),
        ]

    def detach(self) -> None:
        """Put the stored parameters back, and leave the module as it was."""
        for hook in getattr(self, "_hooks", ()):
            hook.remove()
        self._free()

    def _before(self, *_: object) -> None:
        if self._is_read:
            return
        values: dict[int, nn.Parameter] = {}
        for owner, name, param in self._stored:
            if id(param) not in values:
                values[id(param)] = parameter(param, read(param))
            owner._parameters[name] = values[id(param)]
        self._is_read = True

    def _after(self, *_: object) -> None:
        if not self.keeps:
            self._free()

    def _free(self) -> None:
        for owner, name, param in self._stored:
            owner._parameters[name] = param
        self._is_read = False


def _layers(model: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """List modules that are read one after another: the repeated layers, and what is beside them.

    Returns:
        Each module, and whether the parameters of the modules within it belong to it too.
    """
    if not _has_list(model):
        yield model, True
        return
    yield model, False
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from ((layer, True) for layer in child)
        else:
            yield from _layers(child)


def _has_list(module: nn.Module) -> bool:
    return any(isinstance(inner, nn.ModuleList) for inner in module.modules())

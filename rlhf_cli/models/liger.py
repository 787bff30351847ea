"""liger-kernel's layers in place of a model's own: RMSNorm, SwiGLU or GeGLU, and RoPE in Triton.

One pass over memory each, where PyTorch takes several and keeps what lies between for the backward
pass (arXiv:2410.10989). Its losses are left out: ours are not those of its heads.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from rlhf_cli.context import say
from rlhf_cli.errors import ConfigError, KernelError
from rlhf_cli.kernels.triton.obstacle import obstacle as triton_obstacle
from rlhf_cli.models.config import LIGER, LIGER_MODULE

TYPES = (
    "gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2",
    "qwen3", "smollm3",
)  # fmt: skip
"""Model types whose layers a test has compared with the model's own (tests/kernels)."""

NAMES = {
    "LigerRMSNorm": "RMSNorm",
    "LigerSwiGLUMLP": "SwiGLU",
    "LigerPhi3SwiGLUMLP": "SwiGLU",
    "LigerGEGLUMLP": "GeGLU",
}
"""Of what liger puts in place of a layer, by the name that the layer has then."""

ROPE = "apply_rotary_pos_emb"
"""What transformers calls the function that turns queries and keys; a global of each model."""

MARK = "liger"
"""Attribute of a layer that liger computes: which of `KINDS` it is."""

KINDS = (*dict.fromkeys(NAMES.values()), "RoPE")


def require_liger(setting: str | Sequence[str], device: torch.device) -> None:
    """Refuse liger by name where the device has no use for it.

    Raises:
        ConfigError: says why.
    """
    obstacle = _device_obstacle(device)
    if LIGER in setting and obstacle:
        raise ConfigError(_refusal(obstacle))


def take_layers(model: Any, setting: str | Sequence[str], device: torch.device) -> None:
    """Let liger compute layers where `kernels` allows it and it can; say what was taken and why.

    Args:
        model: a transformers model without adapters; only this one is changed.
        setting: `kernels`.
        device: where it will compute.

    Raises:
        KernelError: liger is asked for by name and cannot run here, or not this model.
    """
    kind = model.config.model_type
    obstacle = _device_obstacle(device) or ("" if kind in TYPES else f"has no layers of {kind}")
    if LIGER in setting and obstacle:
        raise KernelError(_refusal(obstacle))
    if setting != "auto" and LIGER not in setting:
        listed = setting if isinstance(setting, str) else f"[{', '.join(setting)}]"
        say(f"layers: the model's own (kernels={listed})")
    elif obstacle:
        say(f"layers: the model's own (liger: {obstacle})")
    else:
        _take(model)
        say(f"layers: liger's {taken(model)}")


def taken(model: nn.Module) -> str:
    """Which layers liger computes, as in `RMSNorm, SwiGLU, RoPE`; empty where none."""
    found = {vars(module)[MARK] for module in _marked(model)}
    return ", ".join(kind for kind in KINDS if kind in found)


@contextmanager
def own_layers(model: nn.Module) -> Iterator[None]:
    """Let a model compute with its own layers inside."""
    computed = [module for module in _marked(model) if "forward" in vars(module)]
    forwards = [(module, vars(module).pop("forward")) for module in computed]
    try:
        yield
    finally:
        for module, forward in forwards:
            module.forward = forward


def drop_layers(model: nn.Module) -> None:
    """Let a model compute with its own layers from here on."""
    for module in _marked(model):
        del module.forward
        delattr(module, MARK)


def _marked(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if MARK in vars(module)]


def _device_obstacle(device: torch.device) -> str:
    obstacle = triton_obstacle(device)
    if not obstacle and find_spec(LIGER_MODULE) is None:
        return "not installed (pip install 'rlhf-cli[kernels]')"
    return obstacle


def _refusal(obstacle: str) -> str:
    return f"kernels: got liger, which cannot run here ({obstacle}). Try kernels=auto"


def _take(model: Any) -> None:
    """Bind liger's forwards to the layers of one model.

    liger also puts its own into transformers' module, for models to come; that is undone, since the
    next may be another's reference, or on a CPU. RoPE is a function of that module, not a layer, so
    each attention gets a forward of its own that finds liger's under the name.
    """
    modeling = vars(sys.modules[type(model).__module__])
    before = dict(modeling)
    try:
        _apply(model)
        rope = modeling[ROPE]
    finally:
        modeling.update(before)
    for module in model.modules():
        name = NAMES.get(module._get_name(), "")
        if name:
            setattr(module, MARK, name)
    for module in model.modules():
        if ROPE in _names_read(type(module).forward):
            module.forward = MethodType(_with_global(type(module).forward, ROPE, rope), module)
            setattr(module, MARK, "RoPE")


def _apply(model: Any) -> None:
    logging.getLogger("liger_kernel").setLevel(logging.ERROR)  # it tells which backends it lacks
    from liger_kernel.transformers import _apply_liger_kernel_to_instance as apply

    apply(model, cross_entropy=False, fused_linear_cross_entropy=False)


def _names_read(function: Any) -> tuple[str, ...]:
    code = getattr(function, "__code__", None)
    return code.co_names if code else ()


def _with_global(function: FunctionType, name: str, value: Any) -> FunctionType:
    """The same function with something else under the name of one of its globals."""
    read = {**function.__globals__, name: value}
    changed = FunctionType(
        function.__code__, read, function.__name__, function.__defaults__, function.__closure__
    )
    changed.__kwdefaults__ = function.__kwdefaults__
    return changed

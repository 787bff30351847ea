"""liger-kernel's layers in place of a model's own: RMSNorm, SwiGLU or GeGLU, and RoPE in Triton.

Each reads memory once, where PyTorch makes several passes and keeps what lies between for the
backward pass (arXiv:2410.10989). liger's losses are left out: they differ from ours.
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

from rlhf_cli.console import logger
from rlhf_cli.errors import ConfigError, KernelError
from rlhf_cli.kernels.registry import triton_unavailable_reason as triton_unavailable
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
"""Kind of each liger replacement, keyed by the class name that a replaced layer reports."""

ROPE = "apply_rotary_pos_emb"
"""Name in transformers of the rotary embedding of queries and keys; a global of each model."""

MARK = "liger"
"""Attribute of a layer that liger computes: which of `KINDS` it is."""

KINDS = (*dict.fromkeys(NAMES.values()), "RoPE")


def require_liger(setting: str | Sequence[str], device: torch.device) -> None:
    """Refuse `kernels=[liger]` where the device cannot run it.

    Raises:
        ConfigError: says why.
    """
    reason = _unavailable_reason(device)
    if LIGER in setting and reason:
        raise ConfigError(_refusal(reason))


def apply_liger(model: Any, setting: str | Sequence[str], device: torch.device) -> None:
    """Replace layers by liger's where `kernels` allows it and they can run; print the choice.

    Args:
        model: a transformers model without adapters; no other model is changed.
        setting: `kernels`.
        device: where the model will compute.

    Raises:
        KernelError: `kernels` names liger, and it cannot run here or has no layers of this model.
    """
    kind = model.config.model_type
    reason = _unavailable_reason(device) or ("" if kind in TYPES else f"has no layers of {kind}")
    if LIGER in setting and reason:
        raise KernelError(_refusal(reason))
    if setting != "auto" and LIGER not in setting:
        listed = setting if isinstance(setting, str) else f"[{', '.join(setting)}]"
        logger.info(f"layers: the model's own (kernels={listed})")
    elif reason:
        logger.info(f"layers: the model's own (liger: {reason})")
    else:
        _replace_layers(model)
        logger.info(f"layers: liger's {liger_layers(model)}")


def liger_layers(model: nn.Module) -> str:
    """Name the kinds of layers that liger computes, as `RMSNorm, SwiGLU, RoPE`, or empty."""
    found = {vars(module)[MARK] for module in _marked(model)}
    return ", ".join(kind for kind in KINDS if kind in found)


@contextmanager
def without_liger(model: nn.Module) -> Iterator[None]:
    """Compute with the model's own layers inside the context."""
    replaced = [module for module in _marked(model) if "forward" in vars(module)]
    forwards = [(module, vars(module).pop("forward")) for module in replaced]
    try:
        yield
    finally:
        for module, forward in forwards:
            module.forward = forward


def remove_liger(model: nn.Module) -> None:
    """Compute with the model's own layers from now on."""
    for module in _marked(model):
        del module.forward
        delattr(module, MARK)


def _marked(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if MARK in vars(module)]


def _unavailable_reason(device: torch.device) -> str:
    reason = triton_unavailable(device)
    if not reason and find_spec(LIGER_MODULE) is None:
        return "not installed (pip install 'rlhf-cli[kernels]')"
    return reason


def _refusal(reason: str) -> str:
    return f"kernels: got liger, which cannot run here ({reason}). Try kernels=auto"


def _replace_layers(model: Any) -> None:
    """Bind liger's forward methods to the layers of one model.

    liger also replaces names in transformers' module, for models to come. That is undone, since the
    next model may be a reference, or on a CPU. RoPE is a function of that module, not a layer, so
    each attention layer gets a forward that finds liger's function under its name.
    """
    modeling = vars(sys.modules[type(model).__module__])
    before = dict(modeling)
    try:
        _patch_instance(model)
        rope = modeling[ROPE]
    finally:
        modeling.update(before)
    for module in model.modules():
        name = NAMES.get(module._get_name(), "")
        if name:
            setattr(module, MARK, name)
    for module in model.modules():
        if ROPE in _global_names(type(module).forward):
            module.forward = MethodType(_replace_global(type(module).forward, ROPE, rope), module)
            setattr(module, MARK, "RoPE")


def _patch_instance(model: Any) -> None:
    logging.getLogger("liger_kernel").setLevel(logging.ERROR)  # it lists the backends it lacks
    from liger_kernel.transformers import _apply_liger_kernel_to_instance as patch

    patch(model, cross_entropy=False, fused_linear_cross_entropy=False)


def _global_names(function: Any) -> tuple[str, ...]:
    code = getattr(function, "__code__", None)
    return code.co_names if code else ()


def _replace_global(function: FunctionType, name: str, value: Any) -> FunctionType:
    """Copy a function so that it finds another value under the name of one of its globals.

    transformers' attention layers call RoPE by a global name, with no argument or attribute to
    replace it by. To set the global itself would change every model of the type in this process,
    a reference among them; a copy of the forward method would have to follow each version.
    """
    read = {**function.__globals__, name: value}
    changed = FunctionType(
        function.__code__, read, function.__name__, function.__defaults__, function.__closure__
    )
    changed.__kwdefaults__ = function.__kwdefaults__
    return changed

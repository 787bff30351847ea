"""Frozen weights in 4 or 8 bits, by bitsandbytes."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from rlhf_cli.errors import ModelError

# It tells at every product that int8 casts its inputs, and that faster kernels could be fetched.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def quantization(kind: str, double: bool, compute: torch.dtype) -> BitsAndBytesConfig:
    """What transformers is told to quantize a model with; the output layer stays as it is.

    Args:
        kind: `nf4` or `int8`.
        double: pack the scales of 4-bit weights too.
        compute: type of the products with 4-bit weights, which are unpacked for each.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            f"quant.kind: got {kind}, which needs bitsandbytes. Try pip install 'rlhf-cli[quant]'"
        )
    return BitsAndBytesConfig(
        load_in_4bit=kind == "nf4",
        load_in_8bit=kind == "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=compute,
    )


def is_quantized(model: Any) -> bool:
    """Whether any weight is held in fewer bits than it is computed in."""
    return bool(getattr(model, "is_quantized", False))


def to_eval(model: nn.Module) -> None:
    """Put a model that is not trained in eval mode, where 4-bit weights are repacked for the CPU.

    Rows of weights that are no whole number of blocks stay as they are: bitsandbytes fails to
    repack them.
    """
    model.eval()
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None and state.shape[-1] % state.blocksize:
            module.train()

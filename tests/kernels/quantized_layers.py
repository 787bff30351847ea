"""Quantized output layers for tests, and their dequantized weights."""

from typing import Any

import torch
from bitsandbytes import functional
from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from torch import Tensor

KINDS = ("nf4", "nf4, quantized scales", "int8")


def quantized_layer(kind: str, weight: Tensor) -> Any:
    """A linear layer as transformers leaves it."""
    vocab, width = weight.shape
    if kind == "int8":
        layer = Linear8bitLt(width, vocab, bias=False, has_fp16_weights=False)
        layer.weight = Int8Params(weight, requires_grad=False)
    else:
        layer = Linear4bit(width, vocab, bias=False, compute_dtype=torch.float32)
        double = kind != "nf4"
        layer.weight = Params4bit(weight, quant_type="nf4", compress_statistics=double)
    return layer.to("cpu")


def dequantized(layer: Any) -> Tensor:
    """Whole weight [V, d] in fp32, dequantized by bitsandbytes."""
    weight = layer.weight
    if weight.dtype == torch.int8:
        scales = layer.state.SCB if weight.SCB is None else weight.SCB
        return functional.int8_vectorwise_dequant(weight.data, scales)
    return functional.dequantize_4bit(weight.data, weight.quant_state).float()

"""How many tokens one forward and backward pass may hold."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from rlhf_cli.models.attention import PRODUCT_LENGTH

MOST = {"cpu": 4096, "cuda": 32768}
"""More does not make the products faster on the device."""

LEAST = 256

SHARE = 0.5
"""Of the total memory, after weights, gradients and moments, that activations may take."""


def micro_batch_tokens(
    policy: nn.Module,
    shape: Any,
    device: torch.device,
    compute: torch.dtype,
    recompute: bool,
    processes: int = 1,
) -> int:
    """Tokens that fit, from the model's shape and the device's total memory.

    Total, not free memory, so that the same machine always cuts the same way.

    Args:
        policy: its parameters are counted.
        shape: transformers text config.
        device: whose memory it is.
        compute: type of the activations.
        recompute: activation checkpointing keeps one vector a layer.
        processes: of this run; on a CPU they share its memory.
    """
    states = sum(p.numel() * 16 if p.requires_grad else p.numel() * 4 for p in policy.parameters())
    sharing = processes if device.type == "cpu" else 1
    room = SHARE * (total_memory(device) / sharing - states)
    tokens = int(room / bytes_per_token(shape, compute.itemsize, recompute))
    most = MOST.get(device.type, MOST["cuda"])
    return max(LEAST, min(most, tokens))


def bytes_per_token(shape: Any, itemsize: int, recompute: bool) -> int:
    """Activations that one token keeps for the backward pass.

    b (6 d + 2 K e + 4 f) + 8 d a layer for a Llama with b-byte activations (8 d are the norms' fp32
    inputs), and twice the b H T scores and probabilities of a row of T tokens where attention is
    computed by plain products.
    """
    width, layers = int(shape.hidden_size), int(shape.num_hidden_layers)
    if recompute:
        return itemsize * width * layers
    heads = getattr(shape, "num_attention_heads", 1)
    key_heads = getattr(shape, "num_key_value_heads", None) or heads
    head_width = getattr(shape, "head_dim", None) or width // heads
    inner = getattr(shape, "intermediate_size", None) or 4 * width
    a_layer = itemsize * (6 * width + 2 * key_heads * head_width + 4 * inner) + 8 * width
    scores = 2 * itemsize * heads * PRODUCT_LENGTH
    return int(layers * (a_layer + scores))


def total_memory(device: torch.device) -> int:
    """Bytes that the device has in all."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

"""Work and memory of a training step: FLOPs, peak FLOP/s, micro-batch size."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.models.attention import PRODUCT_LENGTH
from rlhf_cli.models.wrapper import ModelWrapper

MOST = {"cpu": 4096, "cuda": 32768}
"""More does not make the products faster on the device."""

LEAST = 256

SHARE = 0.5
"""Of the total memory, after weights, gradients and moments, that activations may take."""


def fit_micro_batch_tokens(
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


PROBE_SECONDS = 0.15
PROBES = 3
"""At least so many: the first one loads what computes it, and may take all of the time."""


@dataclass(frozen=True)
class FlopCount:
    """Arithmetic of a model's forward and backward pass, without what is computed twice.

    Attributes:
        token: FLOP a token, in all layers but the output layer.
        pair: FLOP for each token that a token attends to, itself included.
        scored: FLOP a scored token, in the output layer.
    """

    token: int
    pair: int
    scored: int

    def of_batch(self, rows: TokenBatch) -> float:
        """FLOP of a micro-batch, each row computed whole; what rows share may save some of it."""
        pairs = sum(length * (length + 1) / 2 for length in rows.sizes)
        return self.token * len(rows.tokens) + self.pair * pairs + self.scored * len(rows.scored)


def count_flops(policy: ModelWrapper) -> FlopCount:
    """Count a policy's products.

    2 FLOP a weight and token forward, 2 for the gradient of what goes in, and 2 more for that of
    the weight where it is trained.
    """
    model = policy.model
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 0)
    width = getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1)
    head = policy.output_layer if policy.kind == "causal_lm" else None  # else it counts for nothing
    output = set() if head is None else set(head.modules())
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m not in output]
    token = sum(_weights(layer) * _passes(layer) for layer in layers)
    # scores and their average: 2 products of [T, e] and [e, T] a head, and 4 in the backward pass
    pair = 12 * heads * width * config.num_hidden_layers
    return FlopCount(token, pair, 0 if head is None else _weights(head) * _passes(head))


def _weights(layer: Any) -> int:
    if isinstance(layer, Conv1D):
        return int(layer.weight.numel())
    layer = getattr(
        layer, "token_adapter", layer
    )  # PEFT's, where rows of single tokens are trained
    return int(layer.in_features * layer.out_features)  # packed weights have fewer elements


def _passes(layer: Any) -> int:
    return 6 if layer.weight.requires_grad else 4


def measure_peak(device: torch.device, compute: torch.dtype) -> float:
    """FLOP/s of a large matrix product here and now; datasheets are not believed.

    Returns:
        The best of a few products of 1024 (CPU) or 8192 (CUDA) square matrices.
    """
    size = 8192 if device.type == "cuda" else 1024
    a = torch.ones(size, size, dtype=compute, device=device)
    best, done, ends = 0.0, 0, time.monotonic() + PROBE_SECONDS
    while done < PROBES or time.monotonic() < ends:
        done += 1
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    if device.type == "cuda":
        del a
        torch.cuda.reset_peak_memory_stats(device)  # else a small model reports these products
    return best


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device's allocator, or of the whole process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

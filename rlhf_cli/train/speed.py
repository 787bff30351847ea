"""What a step takes of the machine: its products beside those the machine could do, and memory."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.models.wrapper import ModelWrapper

PROBE_SECONDS = 0.15
PROBES = 3
"""At least so many: the first one loads what computes it, and may take all of the time."""


@dataclass(frozen=True)
class Work:
    """Arithmetic of a model's forward and backward pass, without what is computed twice.

    Attributes:
        token: FLOP a token, in all layers but the output layer.
        pair: FLOP for each token that a token attends to, itself included.
        scored: FLOP a scored token, in the output layer.
    """

    token: int
    pair: int
    scored: int

    def of(self, rows: TokenBatch) -> float:
        """FLOP of a micro-batch, each row computed whole; what rows share may save some of it."""
        pairs = sum(length * (length + 1) / 2 for length in rows.row_lengths)
        return self.token * len(rows.tokens) + self.pair * pairs + self.scored * len(rows.scored)


def work_of(policy: ModelWrapper) -> Work:
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
    return Work(token, pair, 0 if head is None else _weights(head) * _passes(head))


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

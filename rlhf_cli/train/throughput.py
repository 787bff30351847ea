"""Work and memory of a training step: FLOPs, peak FLOP/s, micro-batch size."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf_cli.context import RunContext, memory_device
from rlhf_cli.memory.estimate import Rows
from rlhf_cli.memory.limit import Chosen, choose_tokens
from rlhf_cli.memory.phase import RECORD
from rlhf_cli.models.wrapper import ModelWrapper
from rlhf_cli.train.flops import FlopCount


def fit_micro_batch_tokens(cfg: Any, rows: Rows, ctx: RunContext) -> Chosen:
    """Choose the tokens of a micro-batch by the memory model, and say what decided.

    Total, not free memory: the same machine always gives the same micro-batches.

    Args:
        cfg: of the stage; `train.micro_batch_tokens` and `device_memory` are read.
        rows: lengths of the training rows.
        ctx: device, compute type, and the ranks that share a CPU's memory.

    Raises:
        OutOfMemory: not even the smallest micro-batch fits the device.
    """
    device = memory_device(ctx.device, ctx.compute, cfg.device_memory)
    return choose_tokens(cfg, rows, device, ctx.ranks.world_size)


PROBE_SECONDS = 0.15
PROBES = 3
"""Minimum number of timed products; the first one also loads the kernel."""


def count_flops(policy: ModelWrapper) -> FlopCount:
    """Count the FLOPs of a policy's matrix products.

    Per weight and token: 2 in the forward pass, 2 for the gradient of the input, and 2 more for the
    gradient of a trained weight.
    """
    model = policy.model
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 0)
    width = getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1)
    head = policy.output_layer if policy.kind == "causal_lm" else None  # a score head is tiny
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
    return int(layer.in_features * layer.out_features)  # quantized weights have fewer elements


def _passes(layer: Any) -> int:
    return 6 if layer.weight.requires_grad else 4


def measure_peak(device: torch.device, compute: torch.dtype) -> float:
    """Measure the FLOP/s of a large matrix product on this device.

    Returns:
        The best of a few products of square matrices: 1024 wide on a CPU, 8192 on CUDA.
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


def peak_memory() -> int:
    """Peak memory of the run in bytes: of the CUDA allocator, or of the whole process on a CPU."""
    return RECORD.measure()

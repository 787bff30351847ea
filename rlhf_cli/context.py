"""Where a run computes: device, types, seed, ranks, output folder."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rlhf_cli.console import logger
from rlhf_cli.cores import cores
from rlhf_cli.distributed import SINGLE_PROCESS, Ranks, current_ranks
from rlhf_cli.errors import ConfigError

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class RunContext:
    """What every part of a run shares.

    Attributes:
        device: where tensors live.
        compute: type of the forward and backward pass; masters, losses and metrics are fp32.
        seed: of weights, order and noise.
        out: the run folder.
        ranks: the processes that train together; this one alone by default.
    """

    device: torch.device
    compute: torch.dtype
    seed: int
    out: Path
    ranks: Ranks = SINGLE_PROCESS

    @property
    def compute_name(self) -> str:
        """`bf16` or `fp32`."""
        return precision_name(self.compute)


def precision_name(dtype: torch.dtype) -> str:
    """`bf16`, `fp32`, or torch's name of another type."""
    names = {known: name for name, known in PRECISIONS.items()}
    return names.get(dtype, str(dtype).removeprefix("torch."))


def create_context(precision: str, seed: int, out: Path) -> RunContext:
    """Choose device and compute type, seed every generator, and say what was chosen."""
    ranks = current_ranks()
    device = current_device()
    compute, reason = choose_compute(precision, device)
    notes = configure_cpu() if device.type == "cpu" else ""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    context = RunContext(device, compute, seed, out, ranks)
    processes = f"; {ranks.world_size} processes" if ranks.world_size > 1 else ""
    computed = f"compute: {context.compute_name} ({reason})"
    logger.info(f"device: {device_name(device)}{notes}; {computed}{processes}")
    return context


def current_device() -> torch.device:
    """The GPU of this process, the first one where it is alone; without GPUs the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def forked_rng() -> contextlib.AbstractContextManager[None]:
    """Put torch's generators back afterwards: those of the CPU and of this process's GPU.

    Without a list of devices torch saves those of all GPUs, and warns where there are several.
    """
    device = current_device()
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def choose_compute(precision: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The compute type for `train.precision`, and why.

    Raises:
        ConfigError: bf16 was asked for and the device has no bf16 arithmetic.
    """
    native = bf16_support(device)
    if precision == "bf16" and not native:
        raise ConfigError(
            f"train.precision: got bf16; {device_name(device)} has no bf16 arithmetic. "
            "Try train.precision=fp32"
        )
    if precision == "auto":
        return (torch.bfloat16, native) if native else (torch.float32, "no bf16 arithmetic here")
    return PRECISIONS[precision], f"train.precision={precision}"


def bf16_support(device: torch.device) -> str:
    """What the device computes bf16 with, or empty."""
    if device.type == "cuda":
        return "CUDA" if torch.cuda.is_bf16_supported(including_emulation=False) else ""
    features = torch.cpu.get_capabilities()
    return next((f for f in ("amx_bf16", "avx512_bf16") if features.get(f)), "")


def device_name(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {_counted(torch.get_num_threads(), 'thread')}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def configure_cpu() -> str:
    """Settings of threads and memory that training on a CPU wants; gives them in words."""
    if "OMP_NUM_THREADS" not in os.environ and cores() < torch.get_num_threads():
        torch.set_num_threads(cores())
    limit_kernel_cache()
    kept = ", freed memory kept" if keep_freed_memory() else ""
    return f" of {_counted(cores(), 'core')}{kept}"


def use_deterministic_algorithms() -> None:
    """Make torch compute the same bits each time, or fail; before anything runs on a GPU.

    Adding with atomics is what differs otherwise: `index_add`, and the backward passes of gathers
    and of flash attention.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at cuBLAS' first product
    torch.use_deterministic_algorithms(True)


def keep_freed_memory() -> bool:
    """Tell glibc to reuse large blocks instead of returning them to the system.

    A returned block is mapped and zeroed anew, page by page, at its next use; what that costs
    depends on the machine. Other C libraries are left as they are.

    Returns:
        Whether it was told.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    trim_threshold, mmap_threshold = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    return bool(mallopt(mmap_threshold, 1 << 30) and mallopt(trim_threshold, 1 << 30))


def limit_kernel_cache() -> None:
    """Let oneDNN keep 128 compiled kernels instead of 1,024, if nobody set another number.

    Flat rows give its matrix products ever new sizes; at 1,024 the kernels alone take over a
    gigabyte. Read by oneDNN at its first product.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

"""Run context: device, compute dtype, seed, ranks and output folder."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from rlhf_cli.console import logger
from rlhf_cli.cores import cores
from rlhf_cli.distributed.mesh import ShardMesh, create_mesh
from rlhf_cli.distributed.ranks import SINGLE_PROCESS, Ranks, current_ranks
from rlhf_cli.errors import ConfigError
from rlhf_cli.launch.config import LaunchConfig
from rlhf_cli.memory.device import Device, machine_memory, with_memory
from rlhf_cli.memory.phase import RECORD

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class RunContext:
    """Settings that all parts of a run share.

    Attributes:
        device: of parameters and batches.
        compute: dtype of the forward and backward pass; master weights, losses and metrics are
            fp32.
        seed: of weight initialization, data order and sampling.
        out: the run folder.
        ranks: the processes that train together; by default this one alone.
        mesh: processes that share the weights; none where each holds all of them.
    """

    device: torch.device
    compute: torch.dtype
    seed: int
    out: Path
    ranks: Ranks = SINGLE_PROCESS
    mesh: ShardMesh | None = None

    @property
    def compute_name(self) -> str:
        """`bf16` or `fp32`."""
        return precision_name(self.compute)


def precision_name(dtype: torch.dtype) -> str:
    """Name of a dtype: `bf16`, `fp32`, or torch's name for others."""
    names = {known: name for name, known in PRECISIONS.items()}
    return names.get(dtype, str(dtype).removeprefix("torch."))


def create_context(
    precision: str, seed: int, out: Path, launch: LaunchConfig | None = None
) -> RunContext:
    """Choose device and compute dtype, seed all random generators, and log the choices.

    Args:
        precision: `train.precision`.
        seed: of all random generators.
        out: the run folder.
        launch: how weights are shared by the processes of the run; None shares none.
    """
    device = current_device()
    mesh = None if launch is None else create_mesh(launch, device)
    ranks = replace(current_ranks(), sharded=mesh is not None)
    compute, reason = choose_compute(precision, device)
    notes = configure_cpu() if device.type == "cpu" else ""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    measure_memory_of(device)
    context = RunContext(device, compute, seed, out, ranks, mesh)
    processes = f"; {ranks.world_size} processes" if ranks.world_size > 1 else ""
    computed = f"compute: {context.compute_name} ({reason})"
    logger.info(f"device: {device_name(device)}{notes}; {computed}{processes}")
    return context


def memory_device(device: torch.device, compute: torch.dtype, memory: str = "") -> Device:
    """Describe a device for the memory model.

    Args:
        device: of the run.
        compute: its compute dtype.
        memory: value of `device_memory`; empty takes the memory of the device.
    """
    bf16 = compute == torch.bfloat16
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        found = Device(torch.cuda.get_device_name(device), "cuda", total, bf16)
    else:
        found = Device("CPU", "cpu", machine_memory(), bf16)
    return with_memory(found, memory) if memory else found


def measure_memory_of(device: torch.device) -> None:
    """Let the phases of this run measure a GPU's allocator, or this process on a CPU."""
    if device.type == "cuda":
        RECORD.start(
            lambda: int(torch.cuda.max_memory_allocated(device)),
            lambda: torch.cuda.reset_peak_memory_stats(device),
        )
    else:
        RECORD.start()


def current_device() -> torch.device:
    """The GPU of this process (the first one without ranks), or the CPU if there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def forked_rng() -> contextlib.AbstractContextManager[None]:
    """Restore torch's random generators after the block: CPU and the GPU of this process.

    Without a list of devices torch saves the generators of all GPUs and warns about several.
    """
    device = current_device()
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def choose_compute(precision: str, device: torch.device) -> tuple[torch.dtype, str]:
    """Choose the compute dtype for `train.precision`; returns the reason too.

    Raises:
        ConfigError: bf16 is configured and the device has no bf16 arithmetic.
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
    """Hardware feature that computes bf16 on the device; empty if there is none."""
    if device.type == "cuda":
        return "CUDA" if torch.cuda.is_bf16_supported(including_emulation=False) else ""
    features = torch.cpu.get_capabilities()
    return next((f for f in ("amx_bf16", "avx512_bf16") if features.get(f)), "")


def device_name(device: torch.device) -> str:
    """Name of the device for messages."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {_counted(torch.get_num_threads(), 'thread')}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def configure_cpu() -> str:
    """Set threads and memory allocation for training on a CPU; returns a text for the log."""
    if "OMP_NUM_THREADS" not in os.environ and cores() < torch.get_num_threads():
        torch.set_num_threads(cores())
    limit_kernel_cache()
    kept = ", freed memory kept" if keep_freed_memory() else ""
    return f" of {_counted(cores(), 'core')}{kept}"


def use_deterministic_algorithms() -> None:
    """Make torch use bitwise reproducible algorithms or fail; call before anything runs on a GPU.

    Atomic additions differ between runs otherwise: in `index_add` and the backward passes of
    gathers and flash attention.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product
    torch.use_deterministic_algorithms(True)


def keep_freed_memory() -> bool:
    """Set glibc to reuse large memory blocks instead of returning them to the system.

    A returned block is mapped and zeroed page by page at its next use. Other C libraries are left
    unchanged.

    Returns:
        Whether the setting was made.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    trim_threshold, mmap_threshold = -1, -3  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    return bool(mallopt(mmap_threshold, 1 << 30) and mallopt(trim_threshold, 1 << 30))


def limit_kernel_cache() -> None:
    """Limit oneDNN's cache to 128 compiled kernels instead of 1,024, unless the user set a limit.

    Flat rows give its matrix products ever new sizes; 1,024 kernels take over a gigabyte. OneDNN
    reads the limit at its first product.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

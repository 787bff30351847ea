"""The device that a run computes on: its kind, memory and bf16 arithmetic, found without torch."""

import os
import resource
import shutil
import subprocess
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from rlhf_cli.config.sizes import parse_size
from rlhf_cli.errors import ConfigError

CGROUP = Path("/sys/fs/cgroup")
CPUINFO = Path("/proc/cpuinfo")

BF16_CAPABILITY = 8.0
"""Least CUDA compute capability with bf16 arithmetic: Ampere."""

QUERY = "name,memory.total,compute_cap"


@dataclass(frozen=True)
class Device:
    """A device that a run computes on.

    Attributes:
        name: for messages.
        kind: `cpu` or `cuda`.
        total_bytes: memory of the device; on a CPU of the machine, or of its container.
        bf16: whether it has bf16 arithmetic, which `train.precision=auto` then uses.
        stated: whether its memory was given by `device_memory`.
    """

    name: str
    kind: Literal["cpu", "cuda"]
    total_bytes: int
    bf16: bool = True
    stated: bool = False


def find_device(memory: str = "") -> Device:
    """Find the first GPU that this process may use, else the CPU.

    Args:
        memory: value of `device_memory`; replaces the memory that was found.

    Raises:
        ConfigError: `memory` is not a size.
    """
    found = _find_gpu() or Device("CPU", "cpu", machine_memory(), _cpu_has_bf16())
    return with_memory(found, memory) if memory else found


def with_memory(device: Device, memory: str) -> Device:
    """Return a device with the memory that `device_memory` states.

    Raises:
        ConfigError: it is not a size.
    """
    size = parse_size(memory)
    if size is None:
        raise ConfigError(
            f"device_memory: got {memory}; need a size of memory. Try device_memory=24GB"
        )
    return replace(device, total_bytes=size, stated=True)


def stated_gpu(memory: str) -> Device:
    """Describe a GPU that is not here by its memory alone.

    Raises:
        ConfigError: it is not a size.
    """
    return with_memory(Device("GPU", "cuda", 0), memory)


def machine_memory() -> int:
    """Memory of the machine in bytes, or the limit of this process or its container if smaller."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    own, _ = resource.getrlimit(resource.RLIMIT_AS)  # ulimit -v
    limits = [] if own == resource.RLIM_INFINITY else [own]
    return min([total, *limits, *_cgroup_limits()])


def _cgroup_limits() -> list[int]:
    """Limits of the container, from cgroups v2 or v1; empty without one."""
    found = []
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (CGROUP / name).read_text().strip()
        except OSError:  # no cgroups, or of the other version
            continue
        if text.isdigit():
            found.append(int(text))
    return found


def _cpu_has_bf16() -> bool:
    try:
        flags = CPUINFO.read_text().partition("flags")[2].partition("\n")[0].split()
    except OSError:  # not on Linux
        return False
    return bool({"amx_bf16", "avx512_bf16"} & {*flags})


@cache
def _find_gpu() -> Device | None:
    """Ask nvidia-smi for the first GPU that CUDA_VISIBLE_DEVICES leaves; None without one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    program = shutil.which("nvidia-smi")
    if program is None or visible in ("", "-1"):
        return None
    first = (visible or "0").split(",")[0]
    command = [program, f"--id={first}", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        name, megabytes, capability = done.stdout.splitlines()[0].rsplit(",", 2)
        return Device(
            name.strip(), "cuda", int(megabytes) << 20, float(capability) >= BF16_CAPABILITY
        )
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):  # no driver or no GPU
        return None

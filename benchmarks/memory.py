"""The most memory that a part of a process takes, beside what it held when that part began."""

from pathlib import Path

import torch

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""Of Linux."""


def forget_peak(device: torch.device) -> None:
    """Let the next peak be one from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        FORGET.write_text("5", encoding="utf-8")  # proc_pid_clear_refs(5): the peak is what is held


def peak_bytes(device: torch.device) -> int:
    """The most that was held at once: of the device's allocator, or of the process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _status("VmHWM")


def held_bytes(device: torch.device) -> int:
    """What is held now."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))

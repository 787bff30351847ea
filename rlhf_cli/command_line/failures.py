"""What the machine ran out of, in the user's words; torch is not imported to tell."""

import errno
import re

from rlhf_cli.errors import CheckpointError, OutOfMemory, RlhfError, first_line
from rlhf_cli.stages.registry import Command

# CUDA's context and libraries, and torch's allocator for CPUs, raise a plain RuntimeError.
_NO_MEMORY = re.compile(
    r"can't allocate memory|DefaultCPUAllocator|CUDA error: out of memory|STATUS_ALLOC_FAILED"
)
_FREE = "Free disk space, then start again"
_NO_DISK = {
    errno.ENOSPC: _FREE,
    errno.EDQUOT: _FREE,
    errno.EROFS: "Give a folder that can be written, then start again",
}


def known(error: Exception, command: Command | None) -> RlhfError | None:
    """The error of ours that another library's error amounts to, if it is a known one."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if named or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        what = _begin(error) if str(error) else "out of memory"
        return OutOfMemory(f"{what}. {_less(command)}")
    for number, advice in _NO_DISK.items():
        # safetensors passes the system's error on as text
        if getattr(error, "errno", 0) == number or f"(os error {number})" in str(error):
            return CheckpointError(f"{_begin(error)}. {advice}")
    return None


def _begin(error: Exception) -> str:
    """Three sentences: torch goes on about its allocator."""
    line = re.sub(r"^\[enforce fail at [^]]*\] [^.]*\. ", "", first_line(error))
    return ". ".join(line.rstrip(".").split(". ")[:3])


def _less(command: Command | None) -> str:
    if command is None or command.trains:
        return "Try train.micro_batch_tokens=2048 or train.gradient_checkpointing=true"
    if command.name == "evaluate":
        return "Try micro_batch_tokens=512, or with a judge batch_size=1"
    return "Try batch_size=1 or max_new_tokens=64"

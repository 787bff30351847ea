"""Errors with one clear line for the user and an exit code.

A message says where, what was there, what is needed and what to try, in words the user typed. The
first clause of a class's docstring is what the help says about the exit code.
"""

import errno
import re


class RlhfError(Exception):
    """Any other error; base class of all errors that this package raises for the user."""

    exit_code = 1


class ConfigError(RlhfError):
    """The configuration is wrong; the message holds one line per problem."""

    exit_code = 2


class DataError(RlhfError):
    """Data are missing or cannot be used; a file is not there, is empty or has bad rows."""

    exit_code = 3


class ModelError(RlhfError):
    """A model, tokenizer or template cannot be loaded or does not do what training needs."""


class KernelError(RlhfError):
    """A requested implementation cannot run here."""


class CheckpointError(RlhfError):
    """A checkpoint or run folder cannot be written, read or continued."""


class InferenceServerError(RlhfError):
    """An inference server cannot be used, or failed for longer than its deadline.

    Training writes a checkpoint before it ends with this error.
    """


class RankFailed(RlhfError):
    """Another rank failed first; that rank's error is the cause."""


class OutOfMemory(RlhfError):
    """Out of memory; the message has the estimate, and overrides that need less."""

    exit_code = 4


class NonFinite(RlhfError):
    """A loss or gradient was not finite; training stopped before the optimizer step."""

    exit_code = 5


class Interrupted(RlhfError):
    """Interrupted; a signal ended the run, and its last checkpoint is kept."""

    exit_code = 130


def exit_codes() -> dict[int, str]:
    """Every exit code of the command line, in words."""
    kinds: list[type[RlhfError]] = [RlhfError, *RlhfError.__subclasses__()]
    own = {kind.exit_code: kind for kind in kinds if "exit_code" in vars(kind)}
    meanings = {code: (kind.__doc__ or "").partition(";")[0] for code, kind in own.items()}
    return {0: "done", **{code: text[:1].lower() + text[1:] for code, text in meanings.items()}}


def first_line(error: BaseException) -> str:
    """The first line of an exception's message that is not empty, else its class."""
    lines = (line.rstrip() for line in str(error).split("\n"))
    return next(filter(None, lines), type(error).__name__)


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


def translate(error: Exception) -> RlhfError | None:
    """Convert a library's out-of-memory or disk-full error to an `RlhfError`; None for others.

    Args:
        error: of any library; torch is not imported here.
    """
    by_name = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if by_name or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        what = _first_sentences(error) if str(error) else "out of memory"
        return OutOfMemory(what)
    for number, advice in _NO_DISK.items():
        # safetensors passes the system's error on as text
        if getattr(error, "errno", 0) == number or f"(os error {number})" in str(error):
            return CheckpointError(f"{_first_sentences(error)}. {advice}")
    return None


def _first_sentences(error: Exception) -> str:
    """Three sentences at most: torch adds many about its allocator."""
    line = re.sub(r"^\[enforce fail at [^]]*\] [^.]*\. ", "", first_line(error))
    return ". ".join(line.rstrip(".").split(". ")[:3])

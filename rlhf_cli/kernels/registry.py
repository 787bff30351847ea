"""Selection of the `linear_logprobs` implementation, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from rlhf_cli.errors import KernelError, first_line
from rlhf_cli.kernels import chunked, eager
from rlhf_cli.kernels.lm_head import LMHead, TokenLogprobs

MIN_CAPABILITY = (8, 0)
"""CUDA compute capability that the Triton kernels need: Ampere, the first with bf16 products and
asynchronous copies."""


class LinearLogprobs(Protocol):
    """Signature shared by all implementations of the log-prob primitive."""

    def __call__(
        self,
        hidden: Tensor,
        head: LMHead,
        targets: Tensor,
        *,
        temperature: float,
        want: frozenset[str],
    ) -> TokenLogprobs:
        """Log-probability of each target, and the outputs named in `want`."""


@dataclass(frozen=True)
class Implementation:
    """One implementation of the log-prob primitive.

    Attributes:
        name: name in the log and in `kernels=[...]`.
        run: the function.
        unavailable_reason: maps a device to why it cannot run there; empty if it can.
        reads_quantized: accepts a quantized output layer.
    """

    name: str
    run: LinearLogprobs
    unavailable_reason: Callable[[torch.device], str]
    reads_quantized: bool = True


def triton_unavailable_reason(device: torch.device) -> str:
    """Why Triton kernels cannot run on a device, or empty.

    Triton is imported only on a GPU that can run the kernels.
    """
    if device.type != "cuda":
        return "needs CUDA"
    if torch.version.hip is not None:
        return "needs an NVIDIA GPU"
    if find_spec("triton") is None:
        return "not installed (pip install triton)"
    found = torch.cuda.get_device_capability(device)
    if found < MIN_CAPABILITY:
        return "needs compute capability {}.{}, this GPU has {}.{}".format(*MIN_CAPABILITY, *found)
    return _triton_start_error()


def _triton_start_error() -> str:
    """Error of starting Triton, or empty: it compiles a small C module and loads the driver."""
    from triton.runtime import driver

    try:
        driver.active.get_current_target()
    except Exception as error:  # of any type: no compiler, no Python headers, no libcuda, ...
        return f"cannot start ({first_line(error)})"
    return ""


def _triton(
    hidden: Tensor, head: LMHead, targets: Tensor, *, temperature: float, want: frozenset[str]
) -> TokenLogprobs:
    from rlhf_cli.kernels.triton.function import linear_logprobs  # needs Triton, which CPUs lack

    return linear_logprobs(hidden, head, targets, temperature=temperature, want=want)


LINEAR_LOGPROBS = (
    Implementation("triton", _triton, triton_unavailable_reason, reads_quantized=False),
    Implementation("chunked", chunked.linear_logprobs, lambda device: ""),
    Implementation("eager", eager.linear_logprobs, lambda device: ""),
)
"""Implementations in order of preference; the last is the reference and runs everywhere."""


def choose(
    setting: str | Sequence[str], device: torch.device, *, quantized: bool = False
) -> tuple[Implementation, str]:
    """Select the implementation for `kernels=auto|none|[names]`.

    Args:
        setting: `auto`, `none`, or names; names of other operations only count as `auto`.
        device: device to run on.
        quantized: the output layer is quantized.

    Returns:
        The implementation, and the reason for the log.

    Raises:
        KernelError: no named implementation runs on the device with this output layer.
    """
    if setting == "none":
        return LINEAR_LOGPROBS[-1], "kernels=none"
    names = () if isinstance(setting, str) else setting
    candidates = [c for c in LINEAR_LOGPROBS if c.name in names] or LINEAR_LOGPROBS
    rejected: list[str] = []
    for candidate in candidates:
        reason = candidate.unavailable_reason(device)
        if quantized and not candidate.reads_quantized:
            reason = reason or "the output layer is quantized"
        if not reason:
            return candidate, "; ".join(rejected) or f"preferred on {device.type}"
        rejected.append(f"{candidate.name}: {reason}")
    raise KernelError(
        f"kernels: got [{', '.join(setting)}], of which none runs here ({'; '.join(rejected)}). "
        "Try kernels=auto"
    )

"""Which implementation of an operation runs, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rlhf_cli.errors import KernelError
from rlhf_cli.kernels import chunked, eager
from rlhf_cli.kernels.head import Head, TokenLogprobs
from rlhf_cli.kernels.triton.obstacle import obstacle as triton_obstacle


class LinearLogprobs(Protocol):
    """Signature that every implementation of the log-prob primitive shares."""

    def __call__(
        self,
        hidden: Tensor,
        head: Head,
        targets: Tensor,
        *,
        temperature: float,
        want: frozenset[str],
    ) -> TokenLogprobs:
        """Log-probability of each target, and what else is wanted."""


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    Attributes:
        name: as printed and as chosen by tests.
        run: the function.
        obstacle: why it cannot run on a device, or empty.
        unpacks: whether it reads the weight of a packed output layer.
    """

    name: str
    run: LinearLogprobs
    obstacle: Callable[[torch.device], str]
    unpacks: bool = True


def _triton(
    hidden: Tensor, head: Head, targets: Tensor, *, temperature: float, want: frozenset[str]
) -> TokenLogprobs:
    from rlhf_cli.kernels.triton.function import linear_logprobs  # needs Triton, which CPUs lack

    return linear_logprobs(hidden, head, targets, temperature=temperature, want=want)


LINEAR_LOGPROBS = (
    Implementation("triton", _triton, triton_obstacle, unpacks=False),
    Implementation("chunked", chunked.linear_logprobs, lambda device: ""),
    Implementation("eager", eager.linear_logprobs, lambda device: ""),
)
"""In order of preference; the last is the specification and runs everywhere."""


def choose(
    setting: str | Sequence[str], device: torch.device, *, packed: bool = False
) -> tuple[Implementation, str]:
    """The implementation for `kernels=auto|none|[names]`, and the reason in words.

    Args:
        setting: names, or how they are to be found; those of other operations alone are as `auto`.
        device: where it is to run.
        packed: whether the output layer is held in 4 or 8 bits.

    Raises:
        KernelError: none of the names runs on the device and reads the output layer.
    """
    if setting == "none":
        return LINEAR_LOGPROBS[-1], "kernels=none"
    obstacles: list[str] = []
    allowed = [c for c in LINEAR_LOGPROBS if c.name in setting] or LINEAR_LOGPROBS
    for candidate in allowed:
        obstacle = candidate.obstacle(device)
        if packed and not candidate.unpacks:
            obstacle = obstacle or "the output layer is packed"
        if not obstacle:
            return candidate, "; ".join(obstacles) or f"preferred on {device.type}"
        obstacles.append(f"{candidate.name}: {obstacle}")
    raise KernelError(
        f"kernels: got [{', '.join(setting)}], of which none runs here ({'; '.join(obstacles)}). "
        "Try kernels=auto"
    )

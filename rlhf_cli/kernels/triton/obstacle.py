"""Why the Triton implementation cannot run on a device."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from rlhf_cli.errors import first_line

CAPABILITY = (8, 0)
"""Ampere: the first with bf16 products and asynchronous copies."""


def obstacle(device: torch.device) -> str:
    """The reason in a few words, or empty; imports Triton only on a GPU that it could run on."""
    if device.type != "cuda":
        return "needs CUDA"
    if torch.version.hip is not None:
        return "needs an NVIDIA GPU"
    if find_spec("triton") is None:
        return "not installed (pip install triton)"
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        return "needs compute capability {}.{}, this GPU has {}.{}".format(*CAPABILITY, *capability)
    return _driver_problem()


def _driver_problem() -> str:
    """What keeps Triton from starting: it compiles a small C module, and looks for the driver."""
    from triton.runtime import driver

    try:
        driver.active.get_current_target()
    except Exception as error:  # of any kind: no compiler, no Python headers, no libcuda, ...
        return f"cannot start ({first_line(error)})"
    return ""

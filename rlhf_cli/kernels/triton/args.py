"""Launch arguments of both kernels: operands, scale factors and tile shape."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from triton.runtime import driver

from rlhf_cli.errors import KernelError
from rlhf_cli.kernels.lm_head import LMHead


@dataclass(frozen=True)
class Tile:
    """Tile of logits computed by one program, with its compiler settings.

    Attributes:
        tokens: rows of the tile.
        vocab: columns of the tile.
        width: hidden dimensions per step of the product.
        warps: warps of 32 threads that share the tile.
        stages: pipeline stages: steps whose loads are in flight at once.
    """

    tokens: int
    vocab: int
    width: int
    warps: int
    stages: int

    def fitted(self, element_size: int, shared_memory: int) -> Tile:
        """Same tile with as many stages as fit a block's shared memory, bytes."""
        stage = (self.tokens + self.vocab) * self.width * element_size
        return replace(self, stages=max(1, min(self.stages, shared_memory // stage)))


TILES = {
    torch.bfloat16: Tile(128, 256, 64, warps=8, stages=4),
    torch.float16: Tile(128, 256, 64, warps=8, stages=4),
    torch.float32: Tile(64, 64, 32, warps=4, stages=2),
}
"""Tile for each compute type; `function.py` gives the reasons."""


@cache
def device_properties(device: torch.device) -> dict[str, int]:
    """GPU properties from Triton: `multiprocessor_count`, `max_shared_mem` (bytes) and others."""
    properties: dict[str, int] = driver.active.utils.get_device_properties(device.index)
    return properties


@dataclass(frozen=True)
class KernelArgs:
    """Operands of one call of the log-prob primitive.

    Attributes:
        hidden: [S, d].
        weight: [V, d], same type as `hidden`.
        bias: [V] or none.
        targets: [S] int64, contiguous, as is the bias.
        head: read for scale and soft cap only.
        temperature: > 0, no unit.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    head: LMHead
    temperature: float

    def check(self) -> None:
        """Refuse types without a tile.

        Raises:
            KernelError: hidden states and weight differ in type, or the type is unsupported.
        """
        types = {self.hidden.dtype, self.weight.dtype}
        if len(types) > 1 or not types <= TILES.keys():
            found = " and ".join(sorted(str(t).removeprefix("torch.") for t in types))
            raise KernelError(
                f"kernels: triton got hidden states and weight in {found}; needs both in bfloat16, "
                "float16 or float32. Try kernels=none"
            )

    @property
    def factors(self) -> tuple[float, float]:
        """`pre_scale` and `post_scale` of the logits.

        logits = post_scale · tanh(pre_scale · raw), or post_scale · raw without a soft cap.
        """
        if self.head.softcap is None:
            return 1.0, self.head.scale / self.temperature
        return self.head.scale / self.head.softcap, self.head.softcap / self.temperature

    @property
    def tile(self) -> Tile:
        """Tile for this type on this device."""
        tile = TILES[self.hidden.dtype]
        if not self.hidden.is_cuda:  # the interpreter
            return tile
        shared_memory = device_properties(self.hidden.device)["max_shared_mem"]
        return tile.fitted(self.hidden.element_size(), shared_memory)

    def operands(self) -> dict[str, Any]:
        """Keyword arguments shared by both kernels."""
        tile, (pre_scale, post_scale) = self.tile, self.factors
        return {
            "hidden": self.hidden,
            "weight": self.weight,
            "bias": self.weight if self.bias is None else self.bias,  # not read without BIAS
            "targets": self.targets,
            "tokens": len(self.hidden),
            "vocab": len(self.weight),
            "width": self.hidden.shape[1],
            "hidden_row": self.hidden.stride(0),
            "hidden_step": self.hidden.stride(1),
            "weight_row": self.weight.stride(0),
            "weight_step": self.weight.stride(1),
            "pre_scale": pre_scale,
            "post_scale": post_scale,
            "BLOCK_S": tile.tokens,
            "BLOCK_V": tile.vocab,
            "BLOCK_D": tile.width,
            "RAGGED": self.hidden.shape[1] % tile.width != 0,
            "BIAS": self.bias is not None,
            "CAP": self.head.softcap is not None,
            "num_warps": tile.warps,
            "num_stages": tile.stages,
        }

"""A mend of bitsandbytes: 4-bit weights on CPUs whose rows are no whole number of blocks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

OPERATION = "bitsandbytes::dequantize_4bit"
LIBRARY = torch.library.Library("bitsandbytes", "IMPL")


@cache
def mend_unpacking() -> None:
    """Let weights of any width be unpacked as they were packed.

    64 values after one another share a scale, whatever row they are in. The CPU's kernel takes each
    row to begin with a scale of its own (bitsandbytes 0.50), so that rows of 288 get those of other
    values: twice the error of 4 bits, in silence. As one long row it unpacks them right.
    """
    import bitsandbytes  # noqa: F401  (it registers the operation)

    if _is_right():
        return
    kernel = torch.library.get_kernel(OPERATION, "CPU")

    def unpack(
        keys: Any,
        packed: Tensor,
        scales: Tensor,
        block: int,
        kind: str,
        shape: Sequence[int],
        dtype: torch.dtype,
    ) -> Tensor:
        whole = [1, math.prod(shape)] if shape[-1] % block else shape
        found: Tensor = kernel.call_boxed(keys, packed, scales, block, kind, whole, dtype)
        return found.view(*shape)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there was a kernel before
        LIBRARY.impl("dequantize_4bit", unpack, "CPU", with_keyset=True)


def _is_right() -> bool:
    """Whether rows of one and a half blocks come back as one row of three."""
    from bitsandbytes.functional import quantize_4bit

    weight = torch.linspace(-1, 1, 192).square().view(2, 96)
    packed, state = quantize_4bit(weight, blocksize=64, quant_type="nf4")
    unpack = torch.ops.bitsandbytes.dequantize_4bit.default
    rows, row = (
        unpack(packed, state.absmax, 64, "nf4", shape, torch.float32)
        for shape in ([2, 96], [1, 192])
    )
    return bool(torch.equal(rows.flatten(), row.flatten()))

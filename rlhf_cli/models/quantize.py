"""Frozen weights in 4 or 8 bits, by bitsandbytes.

A mend of bitsandbytes: 4-bit weights on CPUs whose rows are no whole number of blocks.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from rlhf_cli.errors import ModelError
from rlhf_cli.kernels.packed import EightBitWeight, FourBitWeight, PackedWeight

# It tells at every product that int8 casts its inputs, and that faster kernels could be fetched.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def quantization(
    kind: str, double: bool, compute: torch.dtype, *, output_layer: bool = False
) -> BitsAndBytesConfig:
    """What transformers is told to quantize a model with.

    Args:
        kind: `nf4` or `int8`.
        double: pack the scales of 4-bit weights too.
        compute: type of the products with 4-bit weights, which are unpacked for each.
        output_layer: pack the output layer too; else it stays as it is.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            f"quant.kind: got {kind}, which needs bitsandbytes. Try pip install 'rlhf-cli[quant]'"
        )
    mend_unpacking()
    return BitsAndBytesConfig(
        load_in_4bit=kind == "nf4",
        load_in_8bit=kind == "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=[] if output_layer else None,  # none given: what transformers skips
    )


def packs_output(config: BitsAndBytesConfig | None) -> bool:
    """Whether a model is to be quantized with its output layer."""
    return config is not None and config.llm_int8_skip_modules == []


def require_own_output(base: str, config: Any, new_tokens: Sequence[int]) -> None:
    """Refuse a model whose output layer is not its own, or is to be trained, before it is loaded.

    Args:
        base: where it is.
        config: of transformers.
        new_tokens: ids whose rows of the output layer are trained beside an adapter.

    Raises:
        ModelError: says why it cannot be packed.
    """
    if config.get_text_config().tie_word_embeddings:
        raise _unpackable(base, "shares its weights with the input embeddings, which stay whole")
    if new_tokens:
        raise _unpackable(base, f"has {len(new_tokens)} new tokens to learn, so it is trained")


def require_packed_output(base: str, model: Any) -> None:
    """Refuse a model whose output layer bitsandbytes has left whole, or packed across its rows.

    Raises:
        ModelError: says what is in the way.
    """
    layer = model.get_output_embeddings()
    state = getattr(getattr(layer, "weight", None), "quant_state", None)
    if state is not None and state.shape[-1] % state.blocksize:
        width, block = state.shape[-1], state.blocksize
        raise _unpackable(base, f"is {width} wide; 4 bits need a multiple of {block}")
    if packed_weight(layer) is None:
        raise _unpackable(base, f"is none that bitsandbytes packs ({type(layer).__name__})")


def _unpackable(base: str, reason: str) -> ModelError:
    return ModelError(
        f"quant.output_layer: got true, and the output layer of {base} {reason}. "
        "Try quant.output_layer=false"
    )


def packed_weight(layer: Any) -> PackedWeight | None:
    """The weight of a layer that bitsandbytes has packed; none of any other layer."""
    weight: Any = getattr(layer, "weight", None)
    state = getattr(weight, "quant_state", None)
    if state is not None:
        if getattr(state, "packing_format_for_cpu", False):
            raise RuntimeError("the output layer was packed anew for the CPU; see `to_eval`")
        values = weight.data.view(torch.uint8).view(state.shape[0], -1)
        return FourBitWeight(values, _scales(state).view(len(values), -1), state.quant_type)
    if getattr(weight, "dtype", None) == torch.int8:
        held = layer.state if weight.SCB is None else weight  # it moves in the first forward pass
        return EightBitWeight(weight.data, held.SCB)
    return None


def _scales(state: Any) -> Tensor:
    """[blocks] fp32; one for 64 values, so they are all unpacked at once."""
    from bitsandbytes.functional import dequantize_blockwise  # an extra, and slow to import

    scales: Tensor = state.absmax
    if state.nested:
        scales = dequantize_blockwise(scales, state.state2) + state.offset
    return scales.float()


def is_quantized(model: Any) -> bool:
    """Whether any weight is held in fewer bits than it is computed in."""
    return bool(getattr(model, "is_quantized", False))


def to_eval(model: nn.Module) -> None:
    """Put a model that is not trained in eval mode, where 4-bit weights are repacked for the CPU.

    Rows of weights that are no whole number of blocks stay as they are: bitsandbytes fails to
    repack them. So does an output layer, whose rows are read as they were packed first.
    """
    model.eval()
    wholes = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    outputs = [whole.get_output_embeddings() for whole in wholes]
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None and (state.shape[-1] % state.blocksize or module in outputs):
            module.train()


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

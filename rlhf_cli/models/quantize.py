"""Quantized base weights, 4-bit NF4 and 8-bit LLM.int8, by bitsandbytes."""

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
from torch.distributed.fsdp import FSDPModule
from transformers import BitsAndBytesConfig, PreTrainedModel

from rlhf_cli.errors import ModelError
from rlhf_cli.kernels.lm_head import EightBitWeight, FourBitWeight, QuantizedWeight

# It warns at every product that int8 casts its inputs, and that faster kernels could be downloaded.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

DEQUANTIZE_OP = "bitsandbytes::dequantize_4bit"
LIBRARY = torch.library.Library("bitsandbytes", "IMPL")


def quantization_config(
    kind: str, double: bool, compute: torch.dtype, *, output_layer: bool = False
) -> BitsAndBytesConfig:
    """Build transformers' config for quantized loading.

    Args:
        kind: `nf4` or `int8`.
        double: quantize the scales of 4-bit weights too.
        compute: type of the products with 4-bit weights, which are dequantized for each.
        output_layer: quantize the output layer too.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise ModelError(
            f"quant.kind: got {kind}, which needs bitsandbytes. Try pip install 'rlhf-cli[quant]'"
        )
    patch_dequantize()
    return BitsAndBytesConfig(
        load_in_4bit=kind == "nf4",
        load_in_8bit=kind == "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=[] if output_layer else None,  # None: transformers' own choice
    )


def quantizes_output_layer(config: BitsAndBytesConfig | None) -> bool:
    """Return whether a config quantizes the output layer too."""
    return config is not None and config.llm_int8_skip_modules == []


def require_quantizable_output(base: str, config: Any, new_tokens: Sequence[int]) -> None:
    """Refuse an output layer that is tied to the embeddings or trained, before loading.

    Args:
        base: folder or hub id, for the message.
        config: of transformers.
        new_tokens: ids whose rows of the output layer are trained beside an adapter.

    Raises:
        ModelError: says why it cannot be quantized.
    """
    if config.get_text_config().tie_word_embeddings:
        raise _unquantizable(
            base, "shares its weights with the input embeddings, which are not quantized"
        )
    if new_tokens:
        raise _unquantizable(base, f"has {len(new_tokens)} new tokens to learn, so it is trained")


def require_quantized_output(base: str, model: Any) -> None:
    """Refuse an output layer that bitsandbytes did not quantize, or not row by row.

    Raises:
        ModelError: says why.
    """
    layer = model.get_output_embeddings()
    state = quant_state(layer)
    if state is not None and state.shape[-1] % state.blocksize:
        width, block = state.shape[-1], state.blocksize
        raise _unquantizable(base, f"is {width} wide; 4 bits need a multiple of {block}")
    if not has_quantized_weight(layer):
        raise _unquantizable(base, f"is none that bitsandbytes quantizes ({type(layer).__name__})")


def _unquantizable(base: str, reason: str) -> ModelError:
    return ModelError(
        f"quant.output_layer: got true, and the output layer of {base} {reason}. "
        "Try quant.output_layer=false"
    )


def quant_state(layer: Any) -> Any:
    """Return the scales of a layer's 4-bit weight; None for any other layer.

    They belong to the weight, or to the layer where processes share the weight.
    """
    weight = getattr(layer, "weight", None)
    return getattr(weight, "quant_state", None) or getattr(layer, "quant_state", None)


def has_quantized_weight(layer: Any) -> bool:
    """Return whether bitsandbytes has quantized the weight of a layer."""
    eight = getattr(getattr(layer, "weight", None), "dtype", None) == torch.int8
    return eight or quant_state(layer) is not None


def quantized_weight(layer: Any) -> QuantizedWeight | None:
    """Return the weight of a layer that bitsandbytes has quantized; none for any other layer.

    A weight that processes share must be gathered, as it is inside a pass of the model.
    """
    weight: Any = getattr(layer, "weight", None)
    state = quant_state(layer)
    if state is not None:
        if getattr(state, "packing_format_for_cpu", False):
            raise RuntimeError("the output layer was repacked for the CPU; see `set_eval_mode`")
        values = weight.data.view(torch.uint8).view(state.shape[0], -1)
        return FourBitWeight(values, _scales(state).view(len(values), -1), state.quant_type)
    if getattr(weight, "dtype", None) == torch.int8:
        # the scales move from the weight to the state in the first forward pass
        owner = layer.state if weight.SCB is None else weight
        return EightBitWeight(weight.data, owner.SCB)
    return None


def _scales(state: Any) -> Tensor:
    """Dequantize all scales [blocks], fp32, at once; there is one for each 64 values."""
    from bitsandbytes.functional import dequantize_blockwise  # an extra, and slow to import

    scales: Tensor = state.absmax
    if state.nested:
        scales = dequantize_blockwise(scales, state.state2) + state.offset
    return scales.float()


def is_quantized(model: Any) -> bool:
    """Return whether any weight is quantized."""
    return bool(getattr(model, "is_quantized", False))


def require_shardable(kind: str, path: str) -> None:
    """Refuse to share 8-bit weights among processes: bitsandbytes keeps a second reference to each.

    Args:
        kind: quantization of the base: `none`, `nf4` or `int8`.
        path: of the model, for the message.

    Raises:
        ModelError: the kind is int8.
    """
    if kind == "int8":
        raise ModelError(
            f"quant.kind: {path} is quantized by int8, and each process would hold all 8-bit "
            "weights. Try quant.kind=nf4, or launch.shard=none"
        )


def move_states_to_layers(model: nn.Module) -> None:
    """Make plain tensors of the packed 4-bit weights, whose scales their layers keep.

    Processes can share plain tensors: bitsandbytes' own parameters lose their scales when they are
    divided. Its layers read the scales from themselves whenever their weight has none.
    """
    for module in model.modules():
        weight = vars(module).get("_parameters", {}).get("weight")
        state = getattr(weight, "quant_state", None)
        if state is not None:
            plain = weight.data.as_subclass(Tensor)
            module.weight = nn.Parameter(plain, requires_grad=False)
            module.quant_state = state


def set_eval_mode(model: nn.Module) -> None:
    """Put a model that is not trained in eval mode, where bitsandbytes repacks 4-bit CPU weights.

    Three kinds of layers stay in train mode: those whose rows are no multiple of a block, which
    bitsandbytes fails to repack, the output layer, whose rows are read in the first format, and
    those whose weight is shared by processes, which gather it in the first format.
    """
    model.eval()
    wholes = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    outputs = [whole.get_output_embeddings() for whole in wholes]
    for module in model.modules():
        state = quant_state(module)
        if state is None:
            continue
        if isinstance(model, FSDPModule) or state.shape[-1] % state.blocksize or module in outputs:
            module.train()


@cache
def patch_dequantize() -> None:
    """Work around a bug of bitsandbytes 0.50: dequantize 4-bit CPU weights of any width.

    64 consecutive values share a scale, across the borders of rows. The CPU kernel starts a new
    scale with each row, so that rows of 288 get the scales of other values: silently twice the
    error of 4 bits. As one long row it dequantizes them right.
    """
    import bitsandbytes  # noqa: F401  (it registers the operation)

    if _dequantizes_any_width():
        return
    kernel = torch.library.get_kernel(DEQUANTIZE_OP, "CPU")

    def dequantize(
        keys: Any,
        quantized: Tensor,
        scales: Tensor,
        block: int,
        kind: str,
        shape: Sequence[int],
        dtype: torch.dtype,
    ) -> Tensor:
        whole = [1, math.prod(shape)] if shape[-1] % block else shape
        found: Tensor = kernel.call_boxed(keys, quantized, scales, block, kind, whole, dtype)
        return found.view(*shape)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that a kernel is replaced
        LIBRARY.impl("dequantize_4bit", dequantize, "CPU", with_keyset=True)


def _dequantizes_any_width() -> bool:
    """Return whether two rows of one and a half blocks come back as one row of three does."""
    from bitsandbytes.functional import quantize_4bit

    weight = torch.linspace(-1, 1, 192).square().view(2, 96)
    quantized, state = quantize_4bit(weight, blocksize=64, quant_type="nf4")
    dequantize = torch.ops.bitsandbytes.dequantize_4bit.default
    rows, row = (
        dequantize(quantized, state.absmax, 64, "nf4", shape, torch.float32)
        for shape in ([2, 96], [1, 192])
    )
    return bool(torch.equal(rows.flatten(), row.flatten()))

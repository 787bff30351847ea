"""4-bit weights that are quantized one by one, when each rank takes its rows of the packed bytes.

bitsandbytes packs a weight as one column of bytes, of which processes share the rows. The scales
are small, and every process keeps all of them. Only one weight at a time is whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlhf_cli.models.config import AdapterConfig
from rlhf_cli.models.stored_origin import Origin
from rlhf_cli.models.stored_tensor import StoredTensor, read
from rlhf_cli.models.stored_weights import exchanged

READ_BY_PEFT = ("blocksize", "compress_statistics", "quant_type", "quant_storage")
"""Settings of a 4-bit weight that PEFT looks for when it adds an adapter."""


@dataclass(frozen=True, eq=False)
class Packed(Origin):
    """The packed bytes [(N + 1) / 2, 1] of a weight of N values.

    Attributes:
        weight: the values, still in their file.
        layer: of bitsandbytes; it gets the scales when the weight is quantized.
        settings: of the quantization, as bitsandbytes' parameter has them.
    """

    weight: StoredTensor
    layer: nn.Module
    settings: Mapping[str, Any]

    def quantized(self) -> nn.Parameter:
        """Read and quantize the weight on its device, as transformers does when it loads one."""
        from bitsandbytes.nn import Params4bit  # an extra, and slow to import

        value = read(self.weight)
        if issubclass(self.layer.source_cls, Conv1D):  # type: ignore[arg-type]
            value = value.T
        made = Params4bit(value, requires_grad=False, **self.settings)
        quantized: nn.Parameter = made.to(value.device)
        return quantized

    def whole(self) -> Tensor:
        """Quantize the weight, and leave the scales with its layer."""
        found: Any = self.quantized()
        self.layer.quant_state = found.quant_state
        packed: Tensor = found.data.as_subclass(Tensor)
        return packed


@contextmanager
def packed_later() -> Iterator[None]:
    """Let `from_pretrained` build 4-bit layers whose weights stay in their files, in the context.

    It is entered beside `deferred`. The parameters are stand-ins for the packed bytes.
    """
    from transformers.integrations import bitsandbytes  # an extra, and slow to import

    with exchanged(bitsandbytes.Bnb4bitQuantize, convert=_convert):
        yield


def _convert(
    _: Any, tensors: Mapping[str, Any], model: Any = None, **__: object
) -> dict[str, nn.Parameter]:
    """Make stand-ins for packed weights; takes the place of transformers' quantizer."""
    found = {}
    for name, value in tensors.items():
        stored = value[0] if isinstance(value, list) else value
        layer = model.get_submodule(name.rpartition(".")[0])
        settings = dict(vars(model.get_parameter_or_buffer(name)))
        shape = ((math.prod(stored.origin.shape) + 1) // 2, 1)
        origin = Packed(shape, torch.uint8, stored, layer, settings)
        made = nn.Parameter(StoredTensor.of(origin, stored.target_device), requires_grad=False)
        vars(made).update({key: settings[key] for key in READ_BY_PEFT})
        layer._is_hf_initialized = True
        found[name] = made
    return found


def pack_now(layer: nn.Module) -> None:
    """Quantize the weight of one layer at once, where it is a stand-in."""
    weight = layer.weight
    if isinstance(weight, StoredTensor) and isinstance(weight.origin, Packed):
        layer.weight = weight.origin.quantized()


def can_pack_later(adapter: AdapterConfig, saved: Sequence[Path]) -> bool:
    """Whether adapters can be put on 4-bit layers whose weights have not been read.

    DoRA computes its magnitudes from them, and a layer that is trained whole is a copy.

    Args:
        adapter: the new one, if any.
        saved: folders of adapters that are loaded.
    """
    from peft import PeftConfig  # a second to import

    configs: list[Any] = [PeftConfig.from_pretrained(folder) for folder in saved]
    reads = any(config.use_dora or config.modules_to_save for config in configs)
    return not (reads or adapter.kind == "dora" or adapter.modules_to_save)

"""4-bit weights come back as they were packed, whatever the width of their rows."""

import pytest
import torch

from rlhf_cli.models.quantize import _dequantizes_any_width, quantization_config

bitsandbytes = pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("width", [32, 64, 96, 288, 320])
@pytest.mark.parametrize("nested", [False, True])
def test_the_error_of_4_bits_is_that_of_the_type(width, nested):
    """Of normal numbers in blocks of 64, on average 0.07."""
    quantization_config(
        "nf4", nested, torch.float32
    )  # what every model with quantized weights goes through
    weight = torch.randn(64, width, generator=torch.Generator().manual_seed(0))
    functional = bitsandbytes.functional
    packed = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=nested)
    back = functional.dequantize_4bit(*packed)
    assert back.shape == weight.shape
    assert (back - weight).abs().mean() < 0.08


def test_a_layer_computes_with_what_was_packed():
    quantization_config("nf4", False, torch.float32)
    assert _dequantizes_any_width()
    weight = torch.randn(48, 96, generator=torch.Generator().manual_seed(0))
    layer = bitsandbytes.nn.Linear4bit(96, 48, bias=False, quant_type="nf4")
    layer.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    layer = layer.to("cpu").train()
    inputs = torch.randn(5, 96, generator=torch.Generator().manual_seed(1))
    expected = inputs @ weight.T
    assert (layer(inputs) - expected).abs().mean() < 0.15 * expected.abs().mean()

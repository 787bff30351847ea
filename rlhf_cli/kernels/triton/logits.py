"""One tile of logits, as both kernels compute it; held in registers, never in memory."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_of_logits(
    hidden,
    weight,
    bias,
    rows,
    columns,
    width,
    hidden_row,
    hidden_step,
    weight_row,
    weight_step,
    inner,
    outer,
    BLOCK_S: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    RAGGED: tl.constexpr,
    BIAS: tl.constexpr,
    CAP: tl.constexpr,
):
    """[BLOCK_S, BLOCK_V] logits in fp32, after bias, scale, soft cap and temperature.

    Args:
        hidden: [S, d].
        weight: [V, d].
        bias: [V], read if BIAS.
        rows: [BLOCK_S] int64, all below S.
        columns: [BLOCK_V] int64, all below V.
        width: d.
        hidden_row: stride of `hidden` from token to token.
        hidden_step: stride of `hidden` along d.
        weight_row: stride of `weight` from token to token.
        weight_step: stride of `weight` along d.
        inner: factor in front of the soft cap's tanh.
        outer: factor on what comes out.
        BLOCK_S: tokens of the tile.
        BLOCK_V: vocabulary of the tile.
        BLOCK_D: width of one step of the product.
        RAGGED: d is no multiple of BLOCK_D.
        BIAS: the layer has one.
        CAP: the layer has a soft cap.
    """
    steps = tl.arange(0, BLOCK_D)
    left = hidden + rows[:, None] * hidden_row + steps[None, :] * hidden_step
    right = weight + columns[None, :] * weight_row + steps[:, None] * weight_step
    z = tl.zeros((BLOCK_S, BLOCK_V), tl.float32)
    for low in range(0, width, BLOCK_D):
        if RAGGED:
            a = tl.load(left, mask=steps[None, :] < width - low, other=0.0)
            b = tl.load(right, mask=steps[:, None] < width - low, other=0.0)
        else:
            a = tl.load(left)
            b = tl.load(right)
        z = tl.dot(a, b, z, input_precision="ieee")  # of fp32 too: no TF32
        left += BLOCK_D * hidden_step
        right += BLOCK_D * weight_step
    if BIAS:
        z += tl.load(bias + columns).to(tl.float32)[None, :]
    if CAP:
        z = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * inner * z))  # tanh; Triton has none of its own
    return z * outer

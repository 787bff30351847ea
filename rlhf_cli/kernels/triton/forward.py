"""Forward kernel: online softmax sums over the vocabulary, per token and vocabulary split."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlhf_cli.kernels.triton.args import KernelArgs, device_properties

GROUP = 8
"""Token tiles scheduled together: their hidden states (1 MB each at d = 4096 in bf16) stay in the
L2 cache while the whole weight is streamed, and all of them read each weight tile."""

LOWEST = tl.constexpr(-1e30)
"""Used instead of -inf, which would give NaN in `weights * shifted`."""

MAXIMUM, TOTAL, TARGET, BEFORE, WEIGHTED, SQUARES = range(6)
"""Rows of `sums`. With weights w = exp(z - maximum): largest logit, Σw, target's logit, largest
logit before the target's column, Σw(z - maximum), Σw²."""


@triton.jit
def compute_logits_tile(
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
    pre_scale,
    post_scale,
    BLOCK_S: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    RAGGED: tl.constexpr,
    BIAS: tl.constexpr,
    CAP: tl.constexpr,
):
    """Logits [BLOCK_S, BLOCK_V] in fp32, after bias, scale, soft cap and temperature.

    Both kernels call it; the tile stays in registers.

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
        pre_scale: factor inside the soft cap's tanh.
        post_scale: factor on the result.
        BLOCK_S: tokens of the tile.
        BLOCK_V: vocabulary of the tile.
        BLOCK_D: hidden dimensions per step of the product.
        RAGGED: d is not a multiple of BLOCK_D.
        BIAS: the layer has a bias.
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
        z = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * pre_scale * z))  # tanh, which Triton lacks
    return z * post_scale


@triton.jit(do_not_specialize=["tokens", "splits", "tiles_per_split"])
def forward_kernel(
    hidden,
    weight,
    bias,
    targets,
    sums,
    tokens,
    vocab,
    width,
    hidden_row,
    hidden_step,
    weight_row,
    weight_step,
    pre_scale,
    post_scale,
    splits,
    tiles_per_split,
    BLOCK_S: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    RAGGED: tl.constexpr,
    BIAS: tl.constexpr,
    CAP: tl.constexpr,
    GROUP: tl.constexpr,
    ENTROPY: tl.constexpr,
    SUM_SQ: tl.constexpr,
    TOP1: tl.constexpr,
):
    """Write the sums of a token tile over a vocabulary split into sums [6, splits, S]."""
    token_tiles = tl.cdiv(tokens, BLOCK_S)
    program = tl.program_id(0)
    token_tile, split = tl.swizzle2d(
        program // splits, program % splits, token_tiles, splits, GROUP
    )
    rows = token_tile * BLOCK_S + tl.arange(0, BLOCK_S)
    read_rows = tl.minimum(rows, tokens - 1).to(tl.int64)
    target = tl.load(targets + read_rows)
    maximum = tl.full((BLOCK_S,), LOWEST, tl.float32)
    target_logit = maximum
    before = maximum
    total = tl.zeros((BLOCK_S,), tl.float32)
    weighted = total
    squares = total
    last = tl.minimum((split + 1) * tiles_per_split, tl.cdiv(vocab, BLOCK_V))
    for tile in range(split * tiles_per_split, last):
        columns = tile * BLOCK_V + tl.arange(0, BLOCK_V)
        z = compute_logits_tile(
            hidden,
            weight,
            bias,
            read_rows,
            tl.minimum(columns, vocab - 1).to(tl.int64),
            width,
            hidden_row,
            hidden_step,
            weight_row,
            weight_step,
            pre_scale,
            post_scale,
            BLOCK_S,
            BLOCK_V,
            BLOCK_D,
            RAGGED,
            BIAS,
            CAP,
        )
        z = tl.where(columns[None, :] < vocab, z, LOWEST)
        is_target = columns[None, :] == target[:, None]
        target_logit = tl.maximum(target_logit, tl.max(tl.where(is_target, z, LOWEST), 1))
        if TOP1:
            earlier = columns[None, :] < target[:, None]
            before = tl.maximum(before, tl.max(tl.where(earlier, z, LOWEST), 1))
        higher = tl.maximum(maximum, tl.max(z, 1))
        shift = maximum - higher
        shrink = tl.exp(shift)
        shifted = z - higher[:, None]
        weights = tl.exp(shifted)
        if ENTROPY:
            weighted = (weighted + shift * total) * shrink + tl.sum(weights * shifted, 1)
        if SUM_SQ:
            squares = squares * shrink * shrink + tl.sum(weights * weights, 1)
        total = total * shrink + tl.sum(weights, 1)
        maximum = higher
    field = splits.to(tl.int64) * tokens
    out = sums + split * tokens + rows
    inside = rows < tokens
    tl.store(out, maximum, mask=inside)
    tl.store(out + field, total, mask=inside)
    tl.store(out + 2 * field, target_logit, mask=inside)
    if TOP1:
        tl.store(out + 3 * field, before, mask=inside)
    if ENTROPY:
        tl.store(out + 4 * field, weighted, mask=inside)
    if SUM_SQ:
        tl.store(out + 5 * field, squares, mask=inside)


def forward_sums(args: KernelArgs, want: frozenset[str]) -> Tensor:
    """Run the forward kernel: sums [6, splits, S] in fp32.

    Rows that `want` does not need are left uninitialized.
    """
    operands, tile = args.operands(), args.tile
    tokens, vocab = len(args.hidden), len(args.weight)
    token_tiles, vocab_tiles = -(-tokens // tile.tokens), -(-vocab // tile.vocab)
    per_split = tiles_per_split(token_tiles, vocab_tiles, concurrent_programs(args.hidden.device))
    splits = -(-vocab_tiles // per_split)
    sums = args.hidden.new_empty(6, splits, tokens, dtype=torch.float32)
    if tokens:
        forward_kernel[(token_tiles * splits,)](
            **operands,
            sums=sums,
            splits=splits,
            tiles_per_split=per_split,
            GROUP=GROUP,
            ENTROPY="entropy" in want,
            SUM_SQ="sum_sq" in want,
            TOP1="top1" in want,
        )
    return sums


def concurrent_programs(device: torch.device) -> int:
    """Programs that run at once: one tile fills a multiprocessor."""
    if device.type != "cuda":
        return 2  # the interpreter, where any number will do
    return device_properties(device)["multiprocessor_count"]


@lru_cache
def tiles_per_split(token_tiles: int, vocab_tiles: int, processors: int) -> int:
    """Vocabulary tiles per program that give the shortest schedule.

    At most 1,024 splits are considered; among equal schedules the fewest splits win.
    """

    def length(per_split: int) -> int:
        programs = token_tiles * -(-vocab_tiles // per_split)
        return -(-programs // processors) * per_split

    shortest = max(1, vocab_tiles // 1024)
    return min(range(vocab_tiles, shortest - 1, -1), key=length)

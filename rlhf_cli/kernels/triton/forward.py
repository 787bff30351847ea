"""The forward kernel: running sums over the vocabulary, one set for each token and split."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlhf_cli.kernels.triton.logits import tile_of_logits
from rlhf_cli.kernels.triton.problem import Problem, chip

GROUP = 8
"""Token tiles that run side by side: their hidden states (1 MB each at d = 4096 in bf16) stay in
the L2 cache while all of the weight passes by, and each tile of it is read by all of them."""

LOWEST = tl.constexpr(-1e30)
"""In place of -inf, which would give NaN in `weights * shifted`."""

MAXIMUM, TOTAL, TARGET, BEFORE, WEIGHTED, SQUARES = range(6)
"""The rows of `sums`. With weights w = exp(z - maximum): the largest logit, Σw, the target's logit,
the largest before the target's column, Σw(z - maximum), Σw²."""


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
    inner,
    outer,
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
    """Sums of one tile of tokens over one split of the vocabulary, into sums [6, splits, S]."""
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
        z = tile_of_logits(
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
            inner,
            outer,
            BLOCK_S,
            BLOCK_V,
            BLOCK_D,
            RAGGED,
            BIAS,
            CAP,
        )
        z = tl.where(columns[None, :] < vocab, z, LOWEST)
        here = columns[None, :] == target[:, None]
        target_logit = tl.maximum(target_logit, tl.max(tl.where(here, z, LOWEST), 1))
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


def forward_sums(problem: Problem, want: frozenset[str]) -> Tensor:
    """[6, splits, S] in fp32; rows that `want` does not need are not written."""
    operands, tile = problem.operands(), problem.tile
    tokens, vocab = len(problem.hidden), len(problem.weight)
    token_tiles, vocab_tiles = -(-tokens // tile.tokens), -(-vocab // tile.vocab)
    per_split = tiles_per_split(token_tiles, vocab_tiles, processors(problem.hidden.device))
    splits = -(-vocab_tiles // per_split)
    sums = problem.hidden.new_empty(6, splits, tokens, dtype=torch.float32)
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


def processors(device: torch.device) -> int:
    """How many programs run at once: one tile fills a multiprocessor."""
    if device.type != "cuda":
        return 2  # the interpreter, where no number is better than another
    return chip(device)["multiprocessor_count"]


@lru_cache
def tiles_per_split(token_tiles: int, vocab_tiles: int, processors: int) -> int:
    """Vocabulary tiles of one program, so that the last programs end together.

    The shortest schedule of up to 1,024 splits wins, of equal ones that with the fewest splits.
    """

    def length(per_split: int) -> int:
        programs = token_tiles * -(-vocab_tiles // per_split)
        return -(-programs // processors) * per_split

    shortest = max(1, vocab_tiles // 1024)
    return min(range(vocab_tiles, shortest - 1, -1), key=length)

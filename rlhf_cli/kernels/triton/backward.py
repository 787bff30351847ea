"""The backward kernel: the gradient of the raw logits, for a range of the vocabulary at a time."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from rlhf_cli.kernels.triton.forward import GROUP
from rlhf_cli.kernels.triton.logits import tile_of_logits
from rlhf_cli.kernels.triton.problem import Problem


@triton.jit(do_not_specialize=["tokens", "low", "high"])
def gradient_kernel(
    hidden,
    weight,
    bias,
    targets,
    lse,
    for_target,
    constant,
    slope,
    out,
    tokens,
    vocab,
    width,
    hidden_row,
    hidden_step,
    weight_row,
    weight_step,
    out_row,
    inner,
    outer,
    factor,
    low,
    high,
    BLOCK_S: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    RAGGED: tl.constexpr,
    BIAS: tl.constexpr,
    CAP: tl.constexpr,
    GROUP: tl.constexpr,
    ENTROPY: tl.constexpr,
):
    """One tile of ∂L/∂(raw logits) at columns low..high, into out [S, high - low].

    p (constant + slope · log p) + for_target · 1[column = target], through temperature, soft cap
    and scale. The target's term is added in fp32: of bf16 values p - 1 would keep nothing near 1.
    """
    token_tiles = tl.cdiv(tokens, BLOCK_S)
    vocab_tiles = tl.cdiv(high - low, BLOCK_V)
    program = tl.program_id(0)
    token_tile, vocab_tile = tl.swizzle2d(
        program // vocab_tiles, program % vocab_tiles, token_tiles, vocab_tiles, GROUP
    )
    rows = token_tile * BLOCK_S + tl.arange(0, BLOCK_S)
    columns = low + vocab_tile * BLOCK_V + tl.arange(0, BLOCK_V)
    read_rows = tl.minimum(rows, tokens - 1).to(tl.int64)
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
    logp = z - tl.load(lse + read_rows)[:, None]
    pull = tl.load(constant + read_rows)[:, None]
    if ENTROPY:
        pull = pull + tl.load(slope + read_rows)[:, None] * logp
    here = columns[None, :] == tl.load(targets + read_rows)[:, None]
    gradient = tl.exp(logp) * pull
    gradient += tl.where(here, tl.load(for_target + read_rows)[:, None], 0.0)
    if CAP:
        tanh = z * (1.0 / outer)
        gradient *= 1.0 - tanh * tanh
    corner = out + token_tile.to(tl.int64) * BLOCK_S * out_row + vocab_tile * BLOCK_V
    place = tl.arange(0, BLOCK_S)[:, None] * out_row + tl.arange(0, BLOCK_V)[None, :]
    inside = (rows[:, None] < tokens) & (columns[None, :] < high)
    tl.store(corner + place, (gradient * factor).to(out.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class Slope:
    """Per token, [S] in fp32: what the gradient of its logits is made of.

    Attributes:
        lse: log-sum-exp of its logits.
        for_target: of the target's logit alone.
        constant: times p, of each logit.
        per_nat: times p log p, of each logit; none where the entropy has no gradient.
    """

    lse: Tensor
    for_target: Tensor
    constant: Tensor
    per_nat: Tensor | None

    @classmethod
    def of_outputs(
        cls,
        lse: Tensor,
        entropy: Tensor | None,
        for_logp: Tensor,
        for_entropy: Tensor | None,
        for_lse: Tensor,
    ) -> Slope:
        """From the gradients g, u, k of log p(target), entropy H and log-sum-exp.

        ∂L/∂z_j = g (1[j = target] - p_j) - u p_j (log p_j + H) + k p_j.
        """
        constant = for_lse - for_logp
        if entropy is None or for_entropy is None:
            return cls(lse, for_logp.contiguous(), constant, None)
        constant = constant - for_entropy * entropy
        return cls(lse, for_logp.contiguous(), constant, -for_entropy)


def write_gradient(problem: Problem, slope: Slope, low: int, high: int, out: Tensor) -> None:
    """∂L/∂(raw logits) at columns low..high into out [S, high - low], in the type of `out`.

    Args:
        problem: as in the forward pass.
        slope: the gradients that came from above.
        low: first column.
        high: one past the last column.
        out: its columns lie side by side.
    """
    operands, tile = problem.operands(), problem.tile
    programs = -(-len(out) // tile.tokens) * -(-(high - low) // tile.vocab)
    if not programs:
        return
    gradient_kernel[(programs,)](
        **operands,
        lse=slope.lse,
        for_target=slope.for_target,
        constant=slope.constant,
        slope=slope.lse if slope.per_nat is None else slope.per_nat,  # not read without ENTROPY
        out=out,
        out_row=out.stride(0),
        factor=problem.head.scale / problem.temperature,
        low=low,
        high=high,
        GROUP=GROUP,
        ENTROPY=slope.per_nat is not None,
    )

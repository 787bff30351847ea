"""Backward kernel: gradient of the raw logits for a range of the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from rlhf_cli.kernels.triton.args import KernelArgs
from rlhf_cli.kernels.triton.forward import GROUP, compute_logits_tile


@triton.jit(do_not_specialize=["tokens", "low", "high"])
def gradient_kernel(
    hidden,
    weight,
    bias,
    targets,
    lse,
    grad_target,
    constant,
    logp_coef,
    out,
    tokens,
    vocab,
    width,
    hidden_row,
    hidden_step,
    weight_row,
    weight_step,
    out_row,
    pre_scale,
    post_scale,
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
    """Write a tile of ∂L/∂(raw logits) at columns low..high into out [S, high - low].

    p (constant + logp_coef · log p) + grad_target · 1[column = target], then the chain rule
    through temperature, soft cap and scale. The target's term is added in fp32: in bf16, p - 1
    near p = 1 would round to 0.
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
    logp = z - tl.load(lse + read_rows)[:, None]
    coef = tl.load(constant + read_rows)[:, None]
    if ENTROPY:
        coef = coef + tl.load(logp_coef + read_rows)[:, None] * logp
    is_target = columns[None, :] == tl.load(targets + read_rows)[:, None]
    gradient = tl.exp(logp) * coef
    gradient += tl.where(is_target, tl.load(grad_target + read_rows)[:, None], 0.0)
    if CAP:
        tanh = z * (1.0 / post_scale)
        gradient *= 1.0 - tanh * tanh
    corner = out + token_tile.to(tl.int64) * BLOCK_S * out_row + vocab_tile * BLOCK_V
    offsets = tl.arange(0, BLOCK_S)[:, None] * out_row + tl.arange(0, BLOCK_V)[None, :]
    inside = (rows[:, None] < tokens) & (columns[None, :] < high)
    tl.store(corner + offsets, (gradient * factor).to(out.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class GradientCoefs:
    """Coefficients of a token's logit gradient, [S] in fp32 each.

    ∂L/∂z_j = p_j (constant + logp_coef · log p_j) + grad_target · 1[j = target].

    Attributes:
        lse: log-sum-exp of the logits.
        grad_target: added at the target's logit.
        constant: coefficient of p.
        logp_coef: coefficient of p log p; none if the entropy has no gradient.
    """

    lse: Tensor
    grad_target: Tensor
    constant: Tensor
    logp_coef: Tensor | None

    @classmethod
    def from_outputs(
        cls,
        lse: Tensor,
        entropy: Tensor | None,
        grad_logp: Tensor,
        grad_entropy: Tensor | None,
        grad_lse: Tensor,
    ) -> GradientCoefs:
        """Coefficients from the gradients g, u, k of log p(target), entropy H and log-sum-exp.

        ∂L/∂z_j = g (1[j = target] - p_j) - u p_j (log p_j + H) + k p_j.
        """
        constant = grad_lse - grad_logp
        if entropy is None or grad_entropy is None:
            return cls(lse, grad_logp.contiguous(), constant, None)
        constant = constant - grad_entropy * entropy
        return cls(lse, grad_logp.contiguous(), constant, -grad_entropy)


def write_gradient(
    args: KernelArgs, coefs: GradientCoefs, low: int, high: int, out: Tensor
) -> None:
    """Write ∂L/∂(raw logits) at columns low..high into out [S, high - low], in its type.

    Args:
        args: operands of the forward pass.
        coefs: coefficients from the upstream gradients.
        low: first column.
        high: one past the last column.
        out: contiguous along columns.
    """
    operands, tile = args.operands(), args.tile
    programs = -(-len(out) // tile.tokens) * -(-(high - low) // tile.vocab)
    if not programs:
        return
    gradient_kernel[(programs,)](
        **operands,
        lse=coefs.lse,
        grad_target=coefs.grad_target,
        constant=coefs.constant,
        logp_coef=coefs.lse if coefs.logp_coef is None else coefs.logp_coef,  # unread w/o ENTROPY
        out=out,
        out_row=out.stride(0),
        factor=args.head.scale / args.temperature,
        low=low,
        high=high,
        GROUP=GROUP,
        ENTROPY=coefs.logp_coef is not None,
    )

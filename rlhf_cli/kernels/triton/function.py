"""`linear_logprobs` for CUDA, in Triton: logits stay in registers, a tile at a time.

In the forward kernel, each program keeps running sums in fp32 for a tile of tokens over a split of
the vocabulary. With few tokens there are more splits, so that every multiprocessor has work. The
sums of the splits [splits, S] are combined in a fixed order, without atomics, so results are
bitwise reproducible. The backward pass recomputes the logits of a range of the vocabulary and
writes their gradient into a workspace in the compute type, from which cuBLAS computes the two
products. The gradient is exact: no block of small gradients is skipped.

Design choices, from arithmetic and published figures of other kernels; none was timed:
- A tile of 128 x 256 logits, 64 hidden dimensions a step, 8 warps: the largest whose sums fit the
  registers (128 per thread), since the product loads 1/128 + 1/256 elements per multiplication and
  is bound by the L2 cache. A step takes 48 KB, so 4 stages fit on Hopper (227 KB of shared memory),
  3 on Ampere (163 KB), 2 on smaller chips (99 KB).
- fp32 uses neither TF32 nor tensor cores, in tiles of 64 x 64 x 32.
- Adjacent programs share 8 token tiles: their hidden states stay in the L2 cache while the weight
  is streamed once per group of 1,024 tokens.
- A workspace of 256 MB: 16,384 columns for 8,192 tokens, wide enough for cuBLAS; ten rounds for a
  vocabulary of 151,936.
- By the compiler's report for sm_90 the loops over d spill no registers. After them
  the backward kernel spills about 1 KB per thread if there is a soft cap, and little otherwise.
- No autotuning: the tile shape changes the last bits, which must be the same in every run.

At 8,192 tokens x 4,096 x 151,936 in bf16 the four products are 41 TFLOP, 52 ms at an H200's 790
TFLOP/s. The workspace and the sums add about 0.5 GB to the gradients themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf_cli.kernels.lm_head import LMHead, TokenLogprobs, fill_missing_gradients
from rlhf_cli.kernels.triton.args import KernelArgs
from rlhf_cli.kernels.triton.backward import GradientCoefs, write_gradient
from rlhf_cli.kernels.triton.forward import (
    BEFORE,
    MAXIMUM,
    SQUARES,
    TARGET,
    TOTAL,
    WEIGHTED,
    forward_sums,
)

WORKSPACE_BYTES = 256 << 20
"""Size of the workspace for the logits' gradient."""


def linear_logprobs(
    hidden: Tensor, head: LMHead, targets: Tensor, *, temperature: float, want: frozenset[str]
) -> TokenLogprobs:
    """Triton version of `eager.linear_logprobs`: same values and gradients.

    Logits are never rounded to bf16.

    Raises:
        KernelError: unsupported types.
    """
    weight = head.weight
    assert isinstance(
        weight, Tensor
    )  # the registry selects another implementation for quantized ones
    KernelArgs(hidden, weight, head.bias, targets, head, temperature).check()
    with torch.cuda.device_of(hidden):
        logp, entropy, lse, sum_sq, top1 = _Fused.apply(  # type: ignore[no-untyped-call]
            hidden, weight, head.bias, targets, head, temperature, want
        )
    return TokenLogprobs(logp, entropy, lse if "lse" in want else None, sum_sq, top1)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: LMHead,
        temperature: float,
        want: frozenset[str],
    ) -> tuple[Tensor | None, ...]:
        targets = targets.contiguous()
        bias = None if bias is None else bias.contiguous()
        args = KernelArgs(hidden, weight, bias, targets, head, temperature)
        found = _combine(forward_sums(args, want), want)
        ctx.save_for_backward(hidden, weight, bias, targets, found.lse, found.entropy)
        ctx.head, ctx.temperature = head, temperature
        ctx.set_materialize_grads(
            False
        )  # an entropy that is only logged gets none, and costs nothing
        ctx.mark_non_differentiable(*(t for t in (found.sum_sq, found.top1) if t is not None))
        return found.logp, found.entropy, found.lse, found.sum_sq, found.top1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, lse, entropy = ctx.saved_tensors
        args = KernelArgs(hidden, weight, bias, targets, ctx.head, ctx.temperature)
        coefs = GradientCoefs.from_outputs(lse, entropy, *fill_missing_gradients(upstream[:3], lse))
        with torch.cuda.device_of(args.hidden):
            gradients = _gradients(args, coefs, ctx.needs_input_grad[:3])
        return (*gradients, None, None, None, None)


def _combine(sums: Tensor, want: frozenset[str]) -> TokenLogprobs:
    """Combine the sums of all splits [6, splits, S] into the outputs."""
    maximum = sums[MAXIMUM].amax(0)
    shift = sums[MAXIMUM] - maximum
    shrink = shift.exp()
    total = (sums[TOTAL] * shrink).sum(0)
    target = sums[TARGET].amax(0)
    entropy = sum_sq = top1 = None
    if "entropy" in want:
        weighted = ((sums[WEIGHTED] + shift * sums[TOTAL]) * shrink).sum(0)
        entropy = total.log() - weighted / total
    if "sum_sq" in want:
        sum_sq = (sums[SQUARES] * shrink.square()).sum(0) / total.square()
    if "top1" in want:  # ties: the first of equal logits counts, as in argmax
        top1 = (target == maximum) & (target > sums[BEFORE].amax(0))
    lse = maximum + total.log()
    return TokenLogprobs((target - maximum) - total.log(), entropy, lse, sum_sq, top1)


def _gradients(
    args: KernelArgs, coefs: GradientCoefs, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden states (summed in fp32), weight and bias; none where not wanted."""
    hidden, weight, bias = args.hidden, args.weight, args.bias
    wants_hidden, wants_weight, wants_bias = wanted
    vocab = len(weight)
    grad_hidden = torch.zeros_like(hidden, dtype=torch.float32) if wants_hidden else None
    product = torch.empty_like(hidden) if wants_hidden else None
    grad_weight = torch.empty_like(weight) if wants_weight else None
    grad_bias = torch.empty_like(bias) if wants_bias and bias is not None else None
    size = _columns_at_once(args)
    workspace = hidden.new_empty(len(hidden), size)
    for low in range(0, vocab, size):
        high = min(low + size, vocab)
        dz = workspace[:, : high - low]
        write_gradient(args, coefs, low, high, dz)
        if grad_hidden is not None:
            grad_hidden += torch.mm(dz, weight[low:high], out=product)
        if grad_weight is not None:
            torch.mm(dz.t(), hidden, out=grad_weight[low:high])
        if grad_bias is not None:
            grad_bias[low:high] = dz.sum(0, dtype=torch.float32)
    return None if grad_hidden is None else grad_hidden.to(hidden.dtype), grad_weight, grad_bias


def _columns_at_once(args: KernelArgs) -> int:
    """Columns of the workspace: whole tiles, at most those of the vocabulary."""
    tile, vocab = args.tile.vocab, len(args.weight)
    row = max(1, len(args.hidden)) * args.hidden.element_size()
    columns = max(1, WORKSPACE_BYTES // row // tile) * tile
    return int(min(columns, -(-vocab // tile) * tile))

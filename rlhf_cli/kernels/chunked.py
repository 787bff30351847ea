"""`linear_logprobs` in tiles of the vocabulary, for any device; never holds [S, V].

The vocabulary is the outer loop: each tile of the weight is read once per pass and its gradient is
written once, by one product, while the hidden states stay in cache. All tiles reuse the same
buffers, because touching fresh pages costs a CPU more than the arithmetic.
The backward pass recomputes the logits of each tile (a fourth matrix product), so any loss can
follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.kernels.lm_head import (
    LMHead,
    QuantizedWeight,
    TokenLogprobs,
    fill_missing_gradients,
    get_rows,
)

TILE_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
"""Workspace of one tile by device: logits in compute type and fp32, and dequantized rows."""


def linear_logprobs(
    hidden: Tensor, head: LMHead, targets: Tensor, *, temperature: float, want: frozenset[str]
) -> TokenLogprobs:
    """Tiled `eager.linear_logprobs`: same values and gradients."""
    # a quantized weight has no gradient, so it is no input of the autograd function
    weight = head.weight if isinstance(head.weight, Tensor) else None
    logp, entropy, lse, sum_sq, top1 = _TiledLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, head.bias, targets, head, temperature, want
    )
    return TokenLogprobs(
        logp=logp,
        entropy=entropy if "entropy" in want else None,
        lse=lse if "lse" in want else None,
        sum_sq=sum_sq if "sum_sq" in want else None,
        top1=top1 if "top1" in want else None,
    )


@dataclass(frozen=True)
class _Tiles:
    """Buffers of one tile, and the computation of its logits."""

    hidden: Tensor
    weight: Tensor | QuantizedWeight
    bias: Tensor | None
    head: LMHead
    temperature: float
    size: int
    raw: Tensor
    wide: Tensor

    @classmethod
    def allocate(
        cls,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        head: LMHead,
        temperature: float,
    ) -> _Tiles:
        matrix = head.weight if weight is None else weight
        size = _tile_size(hidden, matrix)
        raw = hidden.new_empty(len(hidden), size)
        wide = raw if raw.dtype in (torch.float32, torch.float64) else raw.float()
        return cls(hidden, matrix, bias, head, temperature, size, raw, wide)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Start and stop of each vocabulary tile."""
        vocab = len(self.weight)
        return ((low, min(low + self.size, vocab)) for low in range(0, vocab, self.size))

    def rows(self, low: int, high: int) -> Tensor:
        """Weight rows [high - low, d] of a tile, in the compute type."""
        return get_rows(self.weight, low, high, self.hidden.dtype)

    def logits(self, rows: Tensor, low: int) -> Tensor:
        """Logits [S, v] in fp32 of weight rows [v, d] from `low` on, valid until the next call."""
        high = low + len(rows)
        raw = self.raw.view(-1)[: len(self.raw) * len(rows)].view(-1, len(rows))
        torch.mm(self.hidden, rows.t(), out=raw)
        z = self.wide.view(-1)[: raw.numel()].view_as(raw)
        if z.data_ptr() != raw.data_ptr():
            z.copy_(raw)
        if self.bias is not None:
            z.add_(self.bias[low:high])
        if self.head.softcap is not None:
            z.mul_(self.head.scale / self.head.softcap).tanh_().mul_(self.head.softcap)
        elif self.head.scale != 1.0:
            z.mul_(self.head.scale)
        return z if self.temperature == 1.0 else z.div_(self.temperature)

    def narrow(self, gradient: Tensor) -> Tensor:
        """Cast a tile's gradient to the weight's type, for the two products that follow."""
        raw = self.raw.view(-1)[: gradient.numel()].view_as(gradient)
        return gradient if raw.data_ptr() == gradient.data_ptr() else raw.copy_(gradient)


def _tile_size(hidden: Tensor, weight: Tensor | QuantizedWeight) -> int:
    budget = TILE_BYTES.get(hidden.device.type, TILE_BYTES["cuda"])
    per_column = max(1, len(hidden)) * (4 + hidden.element_size())
    if not isinstance(weight, Tensor):
        per_column += hidden.shape[1] * hidden.element_size()
    columns = max(64, budget // per_column // 64 * 64)
    return min(columns, len(weight))


class _TiledLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        targets: Tensor,
        head: LMHead,
        temperature: float,
        want: frozenset[str],
    ) -> tuple[Tensor, ...]:
        tiles = _Tiles.allocate(hidden, weight, bias, head, temperature)
        sums = _Sums.start(hidden, targets, want)
        for low, high in tiles:
            sums.add(tiles.logits(tiles.rows(low, high), low), low)
        lse = sums.maximum + sums.total.log()
        entropy = lse - sums.weighted / sums.total
        sum_sq, top1 = sums.squares / sums.total.square(), sums.best == targets
        ctx.save_for_backward(hidden, weight, bias, targets, lse, entropy)
        ctx.head, ctx.temperature = head, temperature
        ctx.mark_non_differentiable(sum_sq, top1)
        ctx.set_materialize_grads(
            False
        )  # an entropy that is only logged gets none, and costs nothing
        return sums.target - lse, entropy, lse, sum_sq, top1

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, lse, entropy = ctx.saved_tensors
        head, temperature = ctx.head, ctx.temperature
        chain = _LogitGradient(
            targets, lse, entropy, *fill_missing_gradients(upstream[:3], lse), head, temperature
        )
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        tiles = _Tiles.allocate(hidden, weight, bias, head, temperature)
        grad_hidden = torch.zeros_like(hidden, dtype=lse.dtype) if wants_hidden else None
        grad_weight = torch.empty_like(weight) if wants_weight else None
        grad_bias = torch.empty_like(bias) if wants_bias else None
        product = torch.empty_like(hidden) if wants_hidden else None
        for low, high in tiles:
            rows = tiles.rows(low, high)
            grad = chain.compute_(tiles.logits(rows, low), low)
            if grad_bias is not None:
                grad_bias[low:high] = grad.sum(0)
            narrow = tiles.narrow(grad)
            if grad_hidden is not None:
                grad_hidden += torch.mm(narrow, rows, out=product)
            if grad_weight is not None:
                torch.mm(narrow.t(), hidden, out=grad_weight[low:high])
        if grad_hidden is not None:
            grad_hidden = grad_hidden.to(hidden.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


@dataclass
class _Sums:
    """Online softmax sums over the vocabulary, rescaled when the maximum grows."""

    targets: Tensor
    want: frozenset[str]
    maximum: Tensor
    total: Tensor
    weighted: Tensor
    squares: Tensor
    target: Tensor
    best: Tensor

    @classmethod
    def start(cls, hidden: Tensor, targets: Tensor, want: frozenset[str]) -> _Sums:
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        zeros = torch.zeros(len(hidden), dtype=dtype, device=hidden.device)
        lowest = torch.full_like(zeros, -torch.inf)
        total, weighted, squares, target = (zeros.clone() for _ in range(4))
        best = torch.full_like(targets, -1)
        return cls(targets, want, lowest, total, weighted, squares, target, best)

    def add(self, z: Tensor, low: int) -> None:
        """Add one tile of logits [S, v], which is overwritten."""
        is_target, column = _target_columns(self.targets, low, z.shape[1])
        self.target = torch.where(is_target, z.gather(1, column).squeeze(1), self.target)
        highest, argmax = z.max(1) if "top1" in self.want else (z.amax(1), None)
        if argmax is not None:
            self.best = torch.where(highest > self.maximum, argmax + low, self.best)
        maximum = torch.maximum(self.maximum, highest)
        shrink = (self.maximum - maximum).exp()
        if "entropy" in self.want:
            shifted = z.sub(maximum[:, None])
            weights = shifted.exp()
            self.weighted = self.weighted * shrink + (weights * z).sum(1)
            z = weights
        else:
            z.sub_(maximum[:, None]).exp_()
        self.total = self.total * shrink + z.sum(1)
        if "sum_sq" in self.want:
            self.squares = self.squares * shrink.square() + z.square_().sum(1)
        self.maximum = maximum


def _target_columns(targets: Tensor, low: int, width: int) -> tuple[Tensor, Tensor]:
    """Whether each target is in the tile of `width` columns from `low` on, and its column there.

    [S] bool and [S, 1] int64. A target outside gets a clamped column, so that the host does not
    wait for the number of targets inside.
    """
    inside = (targets >= low) & (targets < low + width)
    return inside, (targets - low).clamp(0, width - 1)[:, None]


@dataclass(frozen=True)
class _LogitGradient:
    """Gradient of the raw logits from those of the outputs, tile by tile.

    With g, u, k the gradients of log p(target), entropy H and log-sum-exp:
    ∂L/∂z_j = g (1[j = target] - p_j) - u p_j (log p_j + H) + k p_j,
    then the chain rule through temperature, soft cap and scale.
    """

    targets: Tensor
    lse: Tensor
    entropy: Tensor
    grad_logp: Tensor
    grad_entropy: Tensor | None
    grad_lse: Tensor
    head: LMHead
    temperature: float

    def compute_(self, z: Tensor, low: int) -> Tensor:
        """Gradient [S, v], written over the tile's logits `z`, which start at column `low`."""
        cap_derivative = None
        if self.head.softcap is not None:
            cap_derivative = 1 - (z * (self.temperature / self.head.softcap)).square()
        shared = (self.grad_lse - self.grad_logp)[:, None]
        if self.grad_entropy is None:
            z.sub_(self.lse[:, None]).exp_().mul_(shared)
        else:
            logp = z - self.lse[:, None]
            weight = (logp + self.entropy[:, None]).mul_(-self.grad_entropy[:, None]).add_(shared)
            z.copy_(logp.exp_().mul_(weight))
        is_target, column = _target_columns(self.targets, low, z.shape[1])
        z.scatter_add_(1, column, torch.where(is_target, self.grad_logp, 0.0)[:, None])
        if cap_derivative is not None:
            z.mul_(cap_derivative)
        factor = self.head.scale / self.temperature
        return z if factor == 1.0 else z.mul_(factor)

"""Context parallelism: several ranks compute the tokens of the same flat rows.

The method is DeepSpeed-Ulysses (Jacobs et al. 2023, arXiv:2309.14509). The flat sequence of a
micro-batch is cut into equal chunks, one for each rank of a context group. Embeddings, norms, MLPs
and the output layer work on a rank's own chunk. Attention exchanges tokens against heads: each rank
then has all tokens of its share of the heads, so that `per_row` attention, shared prefixes
included, computes them as in one process. A second exchange returns the chunk. Log-probs and scores
are gathered at the end, so that every rank of the group has the same losses and metrics.

Each rank computes its part of the sum that a gradient is, so gradients are summed over all ranks.

torch's own `torch.distributed.tensor.experimental.context_parallel` (ring attention; torch 2.13)
does not serve here. It replaces SDPA calls of one causal [B, H, T, D] sequence by ring attention,
which has no borders between rows, no prefix that several rows continue, no window and no soft cap;
and its operators exist for CUDA's kernels alone: on a CPU it raises `NotImplementedError: Operator
aten._scaled_dot_product_flash_attention_for_cpu.default does not have a sharding strategy`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import lcm, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.errors import ModelError


@dataclass(frozen=True)
class ContextChunk:
    """The chunk of a flat sequence that this rank computes: consecutive tokens.

    All chunks have the same size; the last ones are filled up with tokens that nothing reads.

    Attributes:
        ranks: of the context group.
        tokens: number n of tokens of the whole sequence.
    """

    ranks: Ranks
    tokens: int

    @property
    def size(self) -> int:
        """Tokens c of each chunk."""
        return -(-self.tokens // self.ranks.world_size)

    def cut(self, values: Tensor) -> Tensor:
        """Cut this rank's chunk [c] out of values [n] of all tokens; 0 fills it up."""
        start = self.ranks.rank * self.size
        own = values[start : start + self.size]
        return F.pad(own, (0, self.size - len(own)))

    def join(self, values: Tensor) -> Tensor:
        """Gather the values [n, ...] of all tokens, without gradient, from chunks [c, ...]."""
        return self.ranks.all_gather_stack(values.detach()).flatten(0, 1)[: self.tokens]

    def place(self, positions: Tensor) -> Places:
        """Find the rank that computes each of some tokens.

        Args:
            positions: [P] int64, indices in the flat sequence.
        """
        owner = positions // self.size
        # the only wait for the device in a pass: sizes of tensors are numbers on the host
        counts = owner.bincount(minlength=self.ranks.world_size).tolist()
        starts = [0, *accumulate(counts)]
        order = owner.argsort(stable=True)
        own = order[starts[self.ranks.rank] : starts[self.ranks.rank + 1]]
        first = torch.tensor(starts).to(owner.device, non_blocking=True)
        source = owner * max(counts) + order.argsort() - first[owner]
        return Places(self.ranks, own, positions[own] % self.size, source, max(counts))

    def to_heads(self, *tensors: Tensor) -> list[Tensor]:
        """Exchange tokens against heads.

        Args:
            tensors: query [1, H, c, D], then key and value [1, K, c, D] of this rank's tokens; each
                key head serves H / K query heads.

        Returns:
            Of all n tokens, this rank's share of the heads, [1, h, n, D]: of the query's
            h = H / ranks, rounded up, and of keys and values those that they attend with.
        """
        heads = tensors[0].shape[1]
        parts = [self._pack(self._divisible(tensor, heads)) for tensor in tensors]
        widths = [prod(part.shape[2:]) for part in parts]
        sent = torch.cat([part.flatten(2) for part in parts], dim=2)  # one exchange, not three
        received = _exchange(sent, self.ranks).flatten(0, 1)[: self.tokens]
        return [
            whole.view(self.tokens, -1, tensor.shape[3]).transpose(0, 1)[None]
            for whole, tensor in zip(received.split(widths, dim=1), tensors, strict=True)
        ]

    def to_tokens(self, attended: Tensor, heads: int) -> Tensor:
        """Exchange heads against tokens: the way back from `to_heads`.

        Args:
            attended: [1, n, h, D] of all tokens, this rank's heads.
            heads: number H of the query's heads.

        Returns:
            [1, c, H, D] of this rank's tokens, all heads.
        """
        size, (_, tokens, share, width) = self.ranks.world_size, attended.shape
        filled = F.pad(attended[0].flatten(1), (0, 0, 0, size * self.size - tokens))
        received = _exchange(filled.view(size, self.size, share * width), self.ranks)
        every = received.view(size, self.size, share, width).transpose(0, 1)
        return every.reshape(1, self.size, size * share, width)[:, :, :heads]

    def _divisible(self, tensor: Tensor, heads: int) -> Tensor:
        """Repeat or add heads so that each rank gets as many, and each key serves as many queries.

        Keys are repeated as little as that needs. Where the query's heads cannot be divided among
        the ranks, every query head gets a key, and heads of zeros fill up; their output is dropped.
        """
        size, own = self.ranks.world_size, tensor.shape[1]
        needed = lcm(own, size) if heads % size == 0 else heads
        if needed > own:
            tensor = tensor.repeat_interleave(needed // own, dim=1)
        return F.pad(tensor, (0, 0, 0, 0, 0, -needed % size))

    def _pack(self, tensor: Tensor) -> Tensor:
        """Reshape [1, H, c, D] to [ranks, c, H / ranks, D], by the rank that gets the heads."""
        _, heads, tokens, width = tensor.shape
        size = self.ranks.world_size
        return tensor.reshape(size, heads // size, tokens, width).transpose(1, 2)


@dataclass(frozen=True)
class Places:
    """Where some tokens of a flat sequence are computed, and how their values are gathered.

    Attributes:
        ranks: of the context group.
        own: [p] int64, which of the P tokens this rank computes.
        local: [p] int64, their indices in this rank's chunk.
        source: [P] int64, index of each token in the values of all ranks, `most` of each.
        most: the largest p of a rank.
    """

    ranks: Ranks
    own: Tensor
    local: Tensor
    source: Tensor
    most: int

    def gather(self, values: Tensor) -> Tensor:
        """Gather the values [P, ...] of all tokens from those [p, ...] of each rank.

        Every rank computes the same loss of them, so each takes its own part of the gradient.
        """
        padding = [0, 0] * (values.dim() - 1) + [0, self.most - len(values)]
        filled = F.pad(values.to(torch.uint8) if values.dtype == torch.bool else values, padding)
        every: Tensor = _Gather.apply(filled, self.ranks)  # type: ignore[no-untyped-call]
        return every.flatten(0, 1).index_select(0, self.source).to(values.dtype)


def _exchange(tensor: Tensor, ranks: Ranks) -> Tensor:
    """`Ranks.all_to_all` with a gradient."""
    found: Tensor = _AllToAll.apply(tensor, ranks)  # type: ignore[no-untyped-call]
    return found


class _AllToAll(torch.autograd.Function):
    """`Ranks.all_to_all`, whose gradient is the exchange back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.all_to_all(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.all_to_all(gradients[0]), None


class _Gather(torch.autograd.Function):
    """`Ranks.all_gather_stack`, whose gradient is this rank's slice: no rank adds another's."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: Ranks) -> Tensor:
        ctx.rank = ranks.rank
        return ranks.all_gather_stack(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.rank], None


POSITION_DEPENDENT = ("dynamic", "longrope")
"""Kinds of rotary embeddings whose frequencies depend on the largest position of a pass."""


def require_exact_positions(model: nn.Module, ranks: Ranks) -> None:
    """Refuse a model whose rotary embeddings depend on the largest position that a rank has.

    Args:
        model: of any class.
        ranks: of the context group.

    Raises:
        ModelError: names the kind.
    """
    if ranks.world_size == 1:
        return
    for module in model.modules():
        kinds = getattr(module, "rope_type", "")  # by kind of layer in Gemma 3 and others
        for kind in kinds.values() if isinstance(kinds, dict) else [kinds]:
            if any(name in str(kind) for name in POSITION_DEPENDENT):
                raise ModelError(
                    f"launch.context_parallel: got {ranks.world_size}, but the rotary embeddings "
                    f"of {type(model).__name__} (rope_type {kind}) depend on the longest row, of "
                    "which each process sees a part. Try launch.context_parallel=1"
                )

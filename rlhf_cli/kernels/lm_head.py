"""LM head: output-layer weight (dense or quantized), valid token ids, and per-token outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

DEQUANTIZED_BYTES = 16 << 20
"""Bytes of dequantized rows held at a time, unless a tile sets the limit."""


class QuantizedWeight(ABC):
    """Frozen weight [V, d], stored in fewer bits than it is computed in."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """V and d."""

    @abstractmethod
    def dequantize(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Dequantized rows [stop - start, d].

        Args:
            start: first row.
            stop: one past the last row; at most V.
            dtype: fp32, bf16 or fp16.
        """

    @abstractmethod
    def __getitem__(self, rows: slice | Tensor) -> QuantizedWeight:
        """Quantized rows of a slice (without a copy) or of an index."""

    def __len__(self) -> int:
        return self.shape[0]

    def row_ranges(self, element_size: int) -> Iterator[tuple[int, int]]:
        """Start and stop of consecutive row ranges of about `DEQUANTIZED_BYTES` each."""
        vocab, width = self.shape
        size = max(1, DEQUANTIZED_BYTES // (width * element_size))
        return ((start, min(start + size, vocab)) for start in range(0, vocab, size))


@dataclass(frozen=True)
class FourBitWeight(QuantizedWeight):
    """4-bit weight: two values per byte, one scale per block of a row (arXiv:2305.14314).

    Attributes:
        values: [V, d / 2] uint8.
        scales: [V, d / block] fp32, largest magnitude of each block.
        kind: `nf4` or `fp4`.
    """

    values: Tensor
    scales: Tensor
    kind: str

    @property
    def shape(self) -> tuple[int, int]:
        """V and d."""
        vocab, half = self.values.shape
        return vocab, 2 * half

    def __getitem__(self, rows: slice | Tensor) -> FourBitWeight:
        return FourBitWeight(self.values[rows], self.scales[rows], self.kind)

    def dequantize(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Dequantized rows [stop - start, d]; see `QuantizedWeight`."""
        from bitsandbytes import functional  # an optional dependency, slow to import

        width, blocks = self.shape[1], self.scales.shape[1]
        state = functional.QuantState(
            absmax=self.scales[start:stop].view(-1),
            shape=torch.Size((stop - start, width)),
            dtype=dtype,
            blocksize=width // blocks,
            quant_type=self.kind,
        )
        # one column, as quantized: given one row, bitsandbytes returns the transpose
        column = self.values[start:stop].view(-1, 1)
        rows: Tensor = functional.dequantize_4bit(column, state)
        return rows


@dataclass(frozen=True)
class EightBitWeight(QuantizedWeight):
    """8-bit weight: one byte per value, one scale per row (arXiv:2208.07339).

    Attributes:
        values: [V, d] int8.
        scales: [V] fp32, largest magnitude of each row.
    """

    values: Tensor
    scales: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """V and d."""
        vocab, width = self.values.shape
        return vocab, width

    def __getitem__(self, rows: slice | Tensor) -> EightBitWeight:
        return EightBitWeight(self.values[rows], self.scales[rows])

    def dequantize(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Dequantized rows [stop - start, d]; see `QuantizedWeight`."""
        return (self.values[start:stop] * (self.scales[start:stop, None] / 127)).to(dtype)


def get_rows(weight: Tensor | QuantizedWeight, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Rows [stop - start, d] of a weight: a view of a dense one, or dequantized to `dtype`."""
    if isinstance(weight, Tensor):
        return weight[start:stop]
    return weight.dequantize(start, stop, dtype)


@dataclass(frozen=True)
class LMHead:
    """Output layer of a language model: logits = softcap(scale · (hidden Wᵀ + bias)).

    Attributes:
        weight: [V, d], often tied to the input embedding; frozen if quantized.
        bias: [V] or none.
        scale: factor on the logits (Cohere's `logit_scale`, 1 / Granite's `logits_scaling`).
        softcap: c of c · tanh(logits / c) (Gemma 2), or none.
    """

    weight: Tensor | QuantizedWeight
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def take_rows(self, rows: slice | Tensor) -> LMHead:
        """Output layer of a part of the vocabulary."""
        bias = None if self.bias is None else self.bias[rows]
        return replace(self, weight=self.weight[rows], bias=bias)


@dataclass(frozen=True)
class RouterLoad:
    """Expert load of each row, summed over its tokens and all MoE layers.

    Attributes:
        chosen: [R, E] fp32, how often each expert was in a token's top k; no gradient.
        share: [R, E] fp32, router probability of each expert.
        tokens: [R] fp32, tokens times layers; no gradient.
    """

    chosen: Tensor
    share: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class TokenLogprobs:
    """Outputs per scored token, [S] in fp32 except `top1`; none if not requested.

    Attributes:
        logp: log-probability of the target, nats.
        entropy: entropy of the distribution, nats.
        lse: log-sum-exp of the logits.
        sum_sq: Σ p², the probability that two samples agree; no gradient.
        top1: bool, the target is the most likely token; no gradient.
        value: value model's expected return from the target on.
        router: expert load of the rows.
    """

    logp: Tensor
    entropy: Tensor | None = None
    lse: Tensor | None = None
    sum_sq: Tensor | None = None
    top1: Tensor | None = None
    value: Tensor | None = None
    router: RouterLoad | None = None


def fill_missing_gradients(
    upstream: Sequence[Tensor | None], lse: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Upstream gradients of log-prob, entropy and log-sum-exp, with zeros for missing ones.

    A missing entropy gradient stays none: computing with it costs a pass of its own.

    Args:
        upstream: gradients of the three outputs, none where the loss does not use one.
        lse: [S] fp32, for shape and type.
    """
    grad_logp, grad_entropy, grad_lse = upstream
    zeros = torch.zeros_like(lse)
    return (
        zeros if grad_logp is None else grad_logp,
        grad_entropy,
        zeros if grad_lse is None else grad_lse,
    )


@dataclass(frozen=True)
class Support:
    """Token ids that can be sampled; other rows of the output layer have probability 0.

    Vocabularies are padded to round sizes, so excluded rows usually come after all tokens, and a
    slice of the weight drops them for free. Gaps between tokens are rare.

    Attributes:
        rows: V, rows of the output layer.
        stop: largest token id + 1, at most V.
        holes: ids below `stop` that have no token, ascending.
    """

    rows: int
    stop: int
    holes: tuple[int, ...] = ()

    @property
    def excluded(self) -> list[int]:
        """Ids with probability 0."""
        return [*self.holes, *range(self.stop, self.rows)]

    def sliced(self, head: LMHead) -> LMHead:
        """Output layer up to `stop`; `mask` removes the logits of holes."""
        return head.take_rows(slice(self.stop))

    def mask(self, logits: Tensor) -> Tensor:
        """Set logits [R, stop] of holes to minus infinity, in place."""
        return logits.index_fill_(1, _indices(self, logits.device).holes, -torch.inf)

    def compact(self, head: LMHead, targets: Tensor) -> tuple[LMHead, Tensor]:
        """Output layer without excluded rows, and targets [S] as its row indices.

        With holes the weight is copied. Without, it is a slice, and targets are unchanged.
        """
        if not self.holes:
            return self.sliced(head), targets
        indices = _indices(self, targets.device)
        return head.take_rows(indices.kept), indices.new_index[targets]


@dataclass(frozen=True)
class _SupportIndices:
    """Index tensors of a `Support` on one device.

    Attributes:
        holes: int64, ids without a token.
        kept: int64, the other ids below `stop`.
        new_index: [stop] int64, position of each id in `kept`; -1 for holes.
    """

    holes: Tensor
    kept: Tensor
    new_index: Tensor


@lru_cache
def _indices(support: Support, device: torch.device) -> _SupportIndices:
    """Index tensors, cached: copying them for each token would make the host wait each time."""
    holes = torch.tensor(support.holes, dtype=torch.long)
    kept = torch.ones(support.stop, dtype=torch.bool)
    kept[holes] = False
    new_index = torch.where(kept, kept.cumsum(0) - 1, -1)
    return _SupportIndices(
        holes.to(device), kept.nonzero().squeeze(1).to(device), new_index.to(device)
    )

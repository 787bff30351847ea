"""Output layers held in 4 or 8 bits, unpacked a range of rows at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

PART_BYTES = 16 << 20
"""Of unpacked rows at once, where nothing else limits them."""


class PackedWeight(ABC):
    """[V, d], frozen, in fewer bits than it is computed in."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """V and d."""

    @abstractmethod
    def rows(self, low: int, high: int, dtype: torch.dtype) -> Tensor:
        """[high - low, d]: some rows, unpacked.

        Args:
            low: the first of them.
            high: one behind the last; at most V.
            dtype: fp32, bf16 or fp16.
        """

    @abstractmethod
    def __getitem__(self, rows: slice | Tensor) -> PackedWeight:
        """Some rows, packed as they are: a slice without a copy, or those of an index."""

    def __len__(self) -> int:
        return self.shape[0]

    def parts(self, element_size: int) -> Iterator[tuple[int, int]]:
        """Bounds of ranges of rows, each of about `PART_BYTES` when it is unpacked."""
        vocab, width = self.shape
        size = max(1, PART_BYTES // (width * element_size))
        return ((low, min(low + size, vocab)) for low in range(0, vocab, size))


@dataclass(frozen=True)
class FourBitWeight(PackedWeight):
    """Two values a byte and a scale for each block of a row (arXiv:2305.14314).

    Attributes:
        values: [V, d / 2] uint8.
        scales: [V, d / block] fp32, the largest magnitude of each block.
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

    def rows(self, low: int, high: int, dtype: torch.dtype) -> Tensor:
        """[high - low, d], see `PackedWeight`."""
        from bitsandbytes import functional  # an extra, and slow to import

        width, blocks = self.shape[1], self.scales.shape[1]
        state = functional.QuantState(
            absmax=self.scales[low:high].view(-1),
            shape=torch.Size((high - low, width)),
            dtype=dtype,
            blocksize=width // blocks,
            quant_type=self.kind,
        )
        # one column, as it was packed: of one row, bitsandbytes would give the transpose
        packed = self.values[low:high].view(-1, 1)
        unpacked: Tensor = functional.dequantize_4bit(packed, state)
        return unpacked


@dataclass(frozen=True)
class EightBitWeight(PackedWeight):
    """A byte a value and a scale for each row (arXiv:2208.07339).

    Attributes:
        values: [V, d] int8.
        scales: [V] fp32, the largest magnitude of each row.
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

    def rows(self, low: int, high: int, dtype: torch.dtype) -> Tensor:
        """[high - low, d], see `PackedWeight`."""
        return (self.values[low:high] * (self.scales[low:high, None] / 127)).to(dtype)


def rows_of(weight: Tensor | PackedWeight, low: int, high: int, dtype: torch.dtype) -> Tensor:
    """[high - low, d]: some rows of a weight; of a whole one as they are, without a copy."""
    return weight[low:high] if isinstance(weight, Tensor) else weight.rows(low, high, dtype)

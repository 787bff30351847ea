"""Where the part of a tensor that one rank holds lies in the whole tensor."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ShardLayout:
    """The part of a tensor that a rank holds: consecutive rows of its first dimension.

    Attributes:
        shape: of the whole tensor.
        start: first row that this rank holds; 0 for a whole tensor.
        rows: number of rows that this rank holds; 0 is possible. A scalar has one row.
        writes: whether this rank saves its rows; False where another rank holds the same ones.
    """

    shape: tuple[int, ...]
    start: int
    rows: int
    writes: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether this rank holds the whole tensor."""
        return self.start == 0 and self.rows == (self.shape[0] if self.shape else 1)


def whole(tensor: Tensor, *, writes: bool = True) -> ShardLayout:
    """Describe a tensor that is not sharded."""
    shape = tuple(tensor.shape)
    return ShardLayout(shape, 0, shape[0] if shape else 1, writes)

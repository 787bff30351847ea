"""How a weight is computed from tensors in safetensors files: read as a whole, or a few rows of it.

A weight is seldom a tensor of the file as it stands: it is cast, the experts of a layer are stacked
into one tensor, rows are added for new tokens. An `Origin` is such a computation before it is run.
`fill_rows` runs it for the rows that one rank holds, block by block, so that no other row is ever
in memory.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_any, tree_map

BLOCK = 16 * 1024**2
"""Bytes that are read at once; up to four copies exist while they are read and cast."""

COLUMNS = 64
"""Columns are read in multiples of this number; a sum over rows is the same in blocks of them."""


@dataclass(frozen=True, eq=False)
class Origin(ABC):
    """A tensor that can be computed.

    Attributes:
        shape: of the tensor.
        dtype: of the tensor.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @abstractmethod
    def whole(self) -> Tensor:
        """Compute the whole tensor on the CPU."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Compute the rows from `start` to `stop`, as many as `stop - start`."""
        return self.whole()[start:stop]

    @property
    def by_rows(self) -> bool:
        """Whether `rows` reads no more than it returns."""
        return False

    def columns(self, start: int, stop: int) -> Tensor:
        """Compute the columns of a matrix from `start` to `stop`."""
        return self.whole()[:, start:stop]


@dataclass(frozen=True, eq=False)
class InMemory(Origin):
    """A small tensor that is in memory: a buffer, a new head, an adapter's matrix."""

    value: Tensor

    def whole(self) -> Tensor:
        """Return it."""
        return self.value

    @property
    def by_rows(self) -> bool:
        """Rows of it are a view."""
        return bool(self.shape)


@dataclass(frozen=True, eq=False)
class Cast(Origin):
    """A tensor in another type."""

    inner: Origin

    def whole(self) -> Tensor:
        """Compute the tensor, and cast it."""
        return self.inner.whole().to(self.dtype)

    def rows(self, start: int, stop: int) -> Tensor:
        """Compute rows, and cast them."""
        return self.inner.rows(start, stop).to(self.dtype)

    def columns(self, start: int, stop: int) -> Tensor:
        """Compute columns, and cast them."""
        return self.inner.columns(start, stop).to(self.dtype)

    @property
    def by_rows(self) -> bool:
        """As the tensor that is cast."""
        return self.inner.by_rows


@dataclass(frozen=True, eq=False)
class Stacked(Origin):
    """Tensors as the rows of one, as the experts of a layer are."""

    parts: Sequence[Origin]

    def whole(self) -> Tensor:
        """Compute all parts."""
        return self.rows(0, len(self.parts))

    def rows(self, start: int, stop: int) -> Tensor:
        """Compute the parts of these rows."""
        if start >= stop:
            return torch.empty((0, *self.shape[1:]), dtype=self.dtype)
        return torch.stack([part.whole() for part in self.parts[start:stop]])

    @property
    def by_rows(self) -> bool:
        """A row is a part."""
        return True


@dataclass(frozen=True, eq=False)
class Joined(Origin):
    """Tensors one below the other: the rows of the first, then those of the second."""

    parts: Sequence[Origin]

    def whole(self) -> Tensor:
        """Compute all parts."""
        return torch.cat([part.whole() for part in self.parts])

    def rows(self, start: int, stop: int) -> Tensor:
        """Compute the rows of each part that lie between."""
        found, first = [], 0
        for part in self.parts:
            last = first + part.shape[0]
            low, high = max(start, first), min(stop, last)
            if low < high:
                found.append(part.rows(low - first, high - first))
            first = last
        return torch.cat(found) if found else torch.empty((0, *self.shape[1:]), dtype=self.dtype)

    @property
    def by_rows(self) -> bool:
        """As the parts are."""
        return all(part.by_rows for part in self.parts)


@dataclass(frozen=True, eq=False)
class RowRange(Origin):
    """Consecutive rows of a tensor, as one of the matrices that a file holds as one."""

    inner: Origin
    first: int

    def whole(self) -> Tensor:
        """Compute the rows."""
        return self.inner.rows(self.first, self.first + self.shape[0])

    def rows(self, start: int, stop: int) -> Tensor:
        """Compute some of the rows."""
        return self.inner.rows(self.first + start, self.first + stop)

    @property
    def by_rows(self) -> bool:
        """As the tensor that they are of."""
        return self.inner.by_rows


@dataclass(frozen=True, eq=False)
class Picked(Origin):
    """Single rows of a tensor, as the embeddings of a few tokens."""

    inner: Origin
    indices: tuple[int, ...]

    def whole(self) -> Tensor:
        """Compute the rows one by one."""
        return torch.cat([self.inner.rows(index, index + 1) for index in self.indices])


@dataclass(frozen=True, eq=False)
class Computed(Origin):
    """The result of a function of torch.

    Attributes:
        function: of torch.
        args: its arguments, with an `Origin` for each tensor.
        kwargs: its named arguments, likewise.
        index: of the result where the function gives several, else none.
        each_row: whether a row of the result depends on the same row of each tensor alone.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    index: int | None = None
    each_row: bool = False

    def whole(self) -> Tensor:
        """Compute the arguments, and run the function."""
        return self._run(lambda origin: origin.whole())

    def rows(self, start: int, stop: int) -> Tensor:
        """Run the function on the rows of its arguments, where that is enough."""
        if not self.by_rows:
            return self.whole()[start:stop]
        return self._run(lambda origin: origin.rows(start, stop))

    def _run(self, compute: Callable[[Origin], Tensor]) -> Tensor:
        def resolved(value: Any) -> Any:
            return compute(value) if isinstance(value, Origin) else value

        args, kwargs = tree_map(resolved, (self.args, self.kwargs))
        with torch.no_grad():
            found = self.function(*args, **kwargs)
        result: Tensor = found if self.index is None else found[self.index]
        return result

    @property
    def by_rows(self) -> bool:
        """Where each row depends on its own row of tensors that are read by rows."""

        def is_whole(value: Any) -> bool:
            return isinstance(value, Origin) and not value.by_rows

        return self.each_row and not tree_any(is_whole, (self.args, self.kwargs))


@dataclass(frozen=True, eq=False)
class WithMeanRows(Origin):
    """An embedding with rows that no weights exist for; each is the mean of the others.

    Attributes:
        inner: the embedding, perhaps with fewer rows.
        untrained: indices of the rows that are set to the mean.
    """

    inner: Origin
    untrained: frozenset[int]

    def whole(self) -> Tensor:
        """Compute all rows."""
        return self.rows(0, self.shape[0])

    def rows(self, start: int, stop: int) -> Tensor:
        """Compute rows of the embedding, and put the mean where it belongs."""
        size = self.inner.shape[0]
        found = torch.empty((stop - start, *self.shape[1:]), dtype=self.dtype)
        kept = max(0, min(stop, size) - start)
        if kept:  # a file refuses a range that begins at its end
            found[:kept] = self.inner.rows(start, start + kept)
        affected = [row - start for row in self.untrained if start <= row < stop]
        if affected:
            found[affected] = mean_of_rows(self.inner, self.untrained)
        return found

    @property
    def by_rows(self) -> bool:
        """As the embedding; the mean is computed a few columns at a time."""
        return self.inner.by_rows


def mean_of_rows(matrix: Origin, without: frozenset[int]) -> Tensor:
    """Compute the mean [d] of a matrix's rows on the CPU, a few columns at a time.

    Args:
        matrix: [V, d].
        without: rows that do not count; those beyond the matrix are left out.
    """
    rows, width = matrix.shape
    known = torch.ones(rows, dtype=torch.bool)
    known[[row for row in without if row < rows]] = False
    step = max(1, BLOCK // (rows * matrix.dtype.itemsize * COLUMNS)) * COLUMNS
    parts = (matrix.columns(at, min(at + step, width)) for at in range(0, width, step))
    return torch.cat([part.cpu().contiguous()[known].mean(0) for part in parts])


def fill_rows(target: Tensor, origin: Origin, start: int) -> None:
    """Fill a tensor with consecutive rows of an origin, block by block.

    Args:
        target: [rows, ...], on any device, in any type; a scalar is filled as a whole.
        origin: of the whole tensor.
        start: first row.
    """
    if isinstance(origin, Cast) and origin.dtype == target.dtype:
        origin = origin.inner  # the copy below is the cast
    with torch.no_grad():
        if not origin.by_rows:
            whole = origin.whole()
            target.copy_(whole[start : start + len(target)] if origin.shape else whole)
            return
        for low, high in blocks(target.shape, origin.dtype):
            target[low:high].copy_(origin.rows(start + low, start + high))


def blocks(shape: Sequence[int], dtype: torch.dtype) -> Iterator[tuple[int, int]]:
    """Divide the rows of a tensor into blocks of at most `BLOCK` bytes, or of one row.

    Args:
        shape: of the tensor.
        dtype: that a block is read in.
    """
    rows = shape[0]
    size = math.prod(shape[1:]) * dtype.itemsize
    step = max(1, BLOCK // max(1, size))
    for low in range(0, rows, step):
        yield low, min(low + step, rows)

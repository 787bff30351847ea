"""The ids that have a probability, where a tokenizer has no token for some rows of the output."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from rlhf_cli.kernels.head import Head


@dataclass(frozen=True)
class Support:
    """Ids that responses are drawn from. All other rows of the output layer have no probability.

    Vocabularies are padded to round sizes, so the excluded rows stand behind the others as a rule,
    and a slice of the weight leaves them out at no cost. Rows between tokens are rare.

    Attributes:
        rows: V, of the output layer.
        stop: one behind the largest id of a token, at most V.
        holes: ids below `stop` that are no token, in ascending order.
    """

    rows: int
    stop: int
    holes: tuple[int, ...] = ()

    @property
    def excluded(self) -> list[int]:
        """Ids that have no probability."""
        return [*self.holes, *range(self.stop, self.rows)]

    def sliced(self, head: Head) -> Head:
        """The output layer up to `stop`; its logits at holes are those that `mask` removes."""
        return _rows_of(head, slice(self.stop))

    def mask(self, logits: Tensor) -> Tensor:
        """Logits [R, stop], in place: minus infinity at holes."""
        return logits.index_fill_(1, _indices(self, logits.device).holes, -torch.inf)

    def compact(self, head: Head, targets: Tensor) -> tuple[Head, Tensor]:
        """The output layer without the excluded rows, and targets [S] as indices of its rows.

        With holes the weight is copied. Without, it is a slice, and targets stay as they are.
        """
        if not self.holes:
            return self.sliced(head), targets
        at = _indices(self, targets.device)
        return _rows_of(head, at.kept), at.place[targets]


@dataclass(frozen=True)
class _Indices:
    """A support on a device.

    Attributes:
        holes: int64, ids that are no token.
        kept: int64, the other ids below `stop`.
        place: [stop] int64, where an id is among those that are kept; -1 at holes.
    """

    holes: Tensor
    kept: Tensor
    place: Tensor


@lru_cache
def _indices(support: Support, device: torch.device) -> _Indices:
    """Made once: to send them anew for each token would make the host wait each time."""
    holes = torch.tensor(support.holes, dtype=torch.long)
    kept = torch.ones(support.stop, dtype=torch.bool)
    kept[holes] = False
    place = torch.where(kept, kept.cumsum(0) - 1, -1)
    return _Indices(holes.to(device), kept.nonzero().squeeze(1).to(device), place.to(device))


def _rows_of(head: Head, rows: slice | Tensor) -> Head:
    bias = None if head.bias is None else head.bias[rows]
    return replace(head, weight=head.weight[rows], bias=bias)

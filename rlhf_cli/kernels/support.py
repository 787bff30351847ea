"""The ids that have a probability, where a tokenizer has no token for some rows of the output."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

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
        if self.holes:
            logits[:, torch.tensor(self.holes, device=logits.device)] = -torch.inf
        return logits

    def compact(self, head: Head, targets: Tensor) -> tuple[Head, Tensor]:
        """The output layer without the excluded rows, and targets [S] as indices of its rows.

        With holes the weight is copied. Without, it is a slice, and targets stay as they are.
        """
        if not self.holes:
            return self.sliced(head), targets
        place = self._place.to(targets.device)
        kept = (place >= 0).nonzero().squeeze(1)
        return _rows_of(head, kept), place[targets]

    @cached_property
    def _place(self) -> Tensor:
        """[stop] int64: where an id is among those that are kept; -1 at holes."""
        kept = torch.ones(self.stop, dtype=torch.bool)
        kept[list(self.holes)] = False
        return torch.where(kept, kept.cumsum(0) - 1, -1)


def _rows_of(head: Head, rows: slice | Tensor) -> Head:
    bias = None if head.bias is None else head.bias[rows]
    return replace(head, weight=head.weight[rows], bias=bias)

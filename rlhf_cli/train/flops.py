"""FLOPs of a pass over token rows; without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of a pass, without recomputation: of tokens, attention and the output layer.

    Attributes:
        token: FLOPs per token, in all layers but the output layer.
        pair: FLOPs per pair of a token and a token it attends to, itself included.
        scored: FLOPs per scored token, in the output layer.
    """

    token: float
    pair: float
    scored: float

    def of_rows(self, lengths: Sequence[int] | NDArray[np.int64], scored: float) -> float:
        """FLOPs of rows if each is computed whole; a shared prefix may save some.

        Args:
            lengths: tokens of each row.
            scored: tokens whose log-prob is computed, over all rows.
        """
        tokens = np.asarray(lengths, np.float64)
        pairs = tokens @ (tokens + 1) / 2
        return float(self.token * tokens.sum() + self.pair * pairs + self.scored * scored)

"""Text in pieces that are tokenized one by one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is tokenized by itself, so that no token reaches over its borders.

    Attributes:
        text: perhaps with `BREAK`s, over which no token reaches either.
        trained: its tokens are targets.
        excluded: they never are, also where all other tokens are trained.
    """

    text: str
    trained: bool = False
    excluded: bool = False

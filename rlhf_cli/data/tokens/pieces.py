"""Text in pieces that are tokenized one by one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is tokenized by itself, so that no token reaches over its borders."""

    text: str
    trained: bool = False

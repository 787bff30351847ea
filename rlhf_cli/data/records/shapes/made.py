"""What a shape makes of a row: columns of ours, and the row's own columns that they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

Columns = Mapping[str, Any]


class Made(NamedTuple):
    """A value for one of our columns, and the names of the columns that it was made of."""

    value: Any
    sources: frozenset[str]


MadeColumns = dict[str, Made]
"""Our column -> what it becomes; empty where the row does not have the shape."""


def made(value: Any, *sources: str) -> Made:
    """A value that was made of some columns."""
    return Made(value, frozenset(sources))

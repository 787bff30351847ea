"""Options that were given although nothing of a run reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def unread(cfg: Any, read: Mapping[str, bool]) -> dict[str, Any]:
    """Options that would change nothing, in silence: name -> default.

    Args:
        cfg: a dataclass.
        read: name of an option -> whether the run reads it.
    """
    defaults = {field.name: field.default for field in fields(cfg)}
    return {
        name: defaults[name]
        for name, is_read in read.items()
        if not is_read and getattr(cfg, name) != defaults[name]
    }

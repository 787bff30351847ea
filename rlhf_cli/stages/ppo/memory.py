"""What a run holds in memory: each model's own bytes, and those that it shares."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def held(models: Mapping[str, nn.Module]) -> dict[str, tuple[int, int]]:
    """Bytes of each model's parameters: its own, and those that a model before it has.

    Args:
        models: by role, in the order in which they are counted.
    """
    seen: set[int] = set()
    found = {}
    for role, model in models.items():
        own = shared = 0
        for param in model.parameters():
            size = param.numel() * param.element_size()
            if param.data_ptr() in seen:
                shared += size
            else:
                own += size
                seen.add(param.data_ptr())
        found[role] = (own, shared)
    return found


def table(models: Mapping[str, nn.Module]) -> list[str]:
    """`held` for printing, with the sum."""
    found = held(models)
    lines = [
        f"  {role:16}{own / 1e6:10,.1f} MB" + (f", {shared / 1e6:,.1f} MB shared" if shared else "")
        for role, (own, shared) in found.items()
    ]
    whole = sum(own for own, _ in found.values())
    return ["models in memory:", *lines, f"  {'all':16}{whole / 1e6:10,.1f} MB"]

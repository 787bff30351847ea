"""Modules of a model by the names that users give them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from rlhf_cli.config.suggest import nearest
from rlhf_cli.errors import ModelError


def modules_named(
    key: str,
    name: str,
    modules: Mapping[str, nn.Module],
    kind: str = "layer",
    otherwise: str = "[]",
) -> dict[str, nn.Module]:
    """The modules whose name is this one, or ends with it behind a dot; by their whole names.

    Args:
        key: what the user set.
        name: what it was set to.
        modules: whole name -> module.
        kind: what the modules are, in words.
        otherwise: what to advise where no name is near.

    Raises:
        ModelError: there is none; it names the key, the modules and the nearest.
    """
    found = {n: module for n, module in modules.items() if n == name or n.endswith(f".{name}")}
    if not found:
        whole = [full for full in modules if full]
        endings = {full.rpartition(".")[2] for full in whole if not full[-1].isdigit()}
        close = nearest(name, [*endings, *whole], 0.4)
        raise ModelError(
            f"{key}: got {name}; no {kind} has that name, the model has "
            f"{', '.join(sorted(endings))}. Try {key}={f'[{close}]' if close else otherwise}"
        )
    return found

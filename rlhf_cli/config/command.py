"""Commands and tools: the first argument of `rlhf`, what each takes, and the name of its code.

The code is named, not imported: a configuration is checked before torch is loaded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Command:
    """A command of `rlhf` that takes keys: its config class, and the function that runs it."""

    name: str
    config: type[Any]
    runner: str
    """`module:function`; that of a training command takes the run folder too."""

    trains: bool
    preflight: str = ""
    """`module:function` that takes a config, sets defaults that depend on the model, and returns
    a line for every problem with files, packages and models that the config names."""

    positional: str = ""
    """The key that the first positional argument sets, as in `rlhf merge runs/sft`; or empty."""

    more: str = ""
    """The key of a list that takes further positional arguments, as in `rlhf evaluate runs/a
    runs/b`; or empty."""

    examples: tuple[str, ...] = ()
    """Arguments of a command that does not train; for its help page."""

    needs: str = ""
    """What a training command needs besides a model and data, as arguments of an example."""


@dataclass(frozen=True)
class Tool:
    """A command of `rlhf` that takes arguments of its own and no keys."""

    name: str
    purpose: str
    runner: str
    """`module:function`, called with the arguments."""

    forms: dict[str, str]
    """Arguments, with what they do."""


def load_function(name: str) -> Callable[..., Any]:
    """Import the function that `module:function` names."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found

"""`--provenance`: every key of a configuration, its value, and where it was set."""

from collections.abc import Mapping
from typing import Any

from rlhf_cli.config.check import origin
from rlhf_cli.config.compose import Layer, last_choices, override_values
from rlhf_cli.config.recipe import Recipe, read
from rlhf_cli.config.schema import flatten
from rlhf_cli.config.values import format_value
from rlhf_cli.resources import shipped_folder

COMMAND_LINE, DEFAULT = "command line", "default"

_VALUE_WIDTH = 32
"""A longer value pushes its own line aside, not all the others."""


def format_table(tree: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """A line for every key: key, value, origin."""
    rows = [(key, format_value(value), origins[key]) for key, value in flatten(tree).items()]
    keys = max(len(key) for key, _, _ in rows)
    values = min(max(len(value) for _, value, _ in rows), _VALUE_WIDTH)
    return "".join(f"{key:<{keys}}  {value:<{values}}  {where}\n" for key, value, where in rows)


def trace(tree: Mapping[str, Any], layers: list[Layer], overrides: list[str]) -> dict[str, str]:
    """Where each key got its value: the layer that wins.

    Args:
        tree: the resolved configuration.
        layers: the recipes and the choices of the command line, in order.
        overrides: what the command line sets.

    Returns:
        For every key of the configuration `default`, `sft.yaml:7` for a recipe, `command line`, or
        for a preset its name, where it was chosen, and the line of its file.
    """
    found = dict.fromkeys(flatten(tree), DEFAULT)
    for layer, choices in zip(layers, last_choices(layers), strict=True):
        for group, option in choices.items():
            own = layer.presets.get(group)
            found |= _preset(group, option, layer.origins[group], own)
        found |= {key: origin(key, layer.origins) for key in flatten(layer.values)}
    found |= dict.fromkeys(flatten(override_values(overrides)), COMMAND_LINE)
    return found


def _preset(group: str, option: str, chosen_in: str, own: Recipe | None) -> dict[str, str]:
    """The origin of each key of a preset's file."""
    name = f"configs/{group}/{option}.yaml"
    preset = own or read(shipped_folder("configs") / group / f"{option}.yaml", name)
    return {
        f"{group}.{key}": f"{group}={option}, {chosen_in}  ({preset.origin(key)})"
        for key in flatten(preset.values)
    }

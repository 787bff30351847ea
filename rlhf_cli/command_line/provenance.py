"""`--provenance`: every key of a configuration, its value, and who set it."""

from rlhf_cli.config.check import origin
from rlhf_cli.config.compose import counting, override_values
from rlhf_cli.config.recipe import read
from rlhf_cli.config.resolve import COMMAND_LINE, Resolved
from rlhf_cli.config.schema import show
from rlhf_cli.config.tree import flat
from rlhf_cli.resources import shipped_folder

_VALUE_WIDTH = 32
"""A longer value pushes its own line aside, not all the others."""


def table(resolved: Resolved) -> str:
    """A line for every key: key, value, origin."""
    origins = trace(resolved)
    rows = [(key, show(value), origins[key]) for key, value in flat(resolved.public_tree).items()]
    keys = max(len(key) for key, _, _ in rows)
    values = min(max(len(value) for _, value, _ in rows), _VALUE_WIDTH)
    return "".join(f"{key:<{keys}}  {value:<{values}}  {where}\n" for key, value, where in rows)


def trace(resolved: Resolved) -> dict[str, str]:
    """Where each key got its value: the winner of all layers.

    Returns:
        For every key of the configuration `default`, `sft.yaml:7` for a recipe, `command line`, or
        for a preset its name, the line of its file, and who chose it.
    """
    found = dict.fromkeys(flat(resolved.public_tree), "default")
    for layer, choices in zip(resolved.layers, counting(resolved.layers), strict=True):
        for group, option in choices.items():
            found |= _preset(group, option, layer.origins[group])
        found |= {key: origin(key, layer.origins) for key in flat(layer.values)}
    found |= dict.fromkeys(flat(override_values(resolved.overrides)), COMMAND_LINE)
    return found


def _preset(group: str, option: str, chooser: str) -> dict[str, str]:
    """The keys of a group's file."""
    name = f"configs/{group}/{option}.yaml"
    preset = read(shipped_folder("configs") / group / f"{option}.yaml", name)
    return {
        f"{group}.{key}": f"{group}={option}, {chooser}  ({preset.origin(key)})"
        for key in flat(preset.values)
    }

"""Composition of a configuration by Hydra: defaults, group files, recipes, command line.

The nodes are untyped, so Hydra refuses nothing; `check` does so afterwards, all problems at once.
"""

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf_cli.config.command import Command
from rlhf_cli.config.recipe import Recipe
from rlhf_cli.config.schema import flatten
from rlhf_cli.errors import ConfigError
from rlhf_cli.resources import shipped_folder

_LAYER = "_layer"
VARIABLES = "vars"


@dataclass
class Layer:
    """Values and group choices of one recipe or of the command line."""

    choices: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    """Where the keys and the groups are set, as in `sft.yaml:7`."""

    presets: dict[str, Recipe] = field(default_factory=dict)
    """Group -> the user's own preset that was chosen of it."""

    variables: dict[str, Any] = field(default_factory=dict)
    """What `${vars.NAME}` stands for."""


@dataclass(frozen=True)
class Composed:
    """The plain values of a command.

    Attributes:
        raw: as they were given, with `${references}` in texts; those to variables are replaced by
            the text of the variable.
        tree: with the references resolved.
    """

    raw: dict[str, Any]
    tree: dict[str, Any]


def compose_tree(command: Command, layers: list[Layer], overrides: list[str]) -> Composed:
    """Compose the values of a command; later layers win, then the overrides.

    A group's file takes effect where the group is chosen, and of several choices only the last
    one: `model=tiny` on the command line also replaces a recipe's `model.path`.

    Raises:
        ConfigError: A `${reference}` cannot be resolved.
    """
    names = ",".join(f"l{i}" for i in range(len(layers)))
    try:
        _store(command, layers)
        with initialize_config_dir(str(shipped_folder("configs")), version_base="1.3"):
            composed = compose(command.name, overrides=[f"+{_LAYER}=[{names}]", *overrides])
        raw = OmegaConf.to_container(composed, resolve=False)
        tree = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error)) from None
    given, resolved = _with_text_keys(raw), _with_text_keys(tree)
    resolved.pop(VARIABLES, None)
    return Composed(_inline(given, given.pop(VARIABLES, {})), resolved)


_VARIABLE = re.compile(rf"(?<!\\)\$\{{\s*{VARIABLES}\.([\w.]+)\s*\}}")


def _inline(value: Any, variables: dict[str, Any]) -> Any:
    """Nested values with the text of each variable in place of the reference to it."""
    if isinstance(value, dict):
        return {key: _inline(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_inline(item, variables) for item in value]
    if not isinstance(value, str):
        return value
    known = flatten(variables)
    for _ in known:  # a variable may refer to another; a circle is refused where it is resolved
        value = _VARIABLE.sub(lambda found: str(known.get(found[1], found[0])), value)
    return value


def _with_text_keys(tree: Any) -> dict[str, Any]:
    return {str(key): value for key, value in dict(tree).items()}


def _store(command: Command, layers: list[Layer]) -> None:
    """Make the defaults and the layers known to Hydra."""
    store = ConfigStore.instance()
    store.store(name=command.name, node=asdict(command.config()))
    for i, (layer, choices) in enumerate(zip(layers, last_choices(layers), strict=True)):
        chosen = [{f"/{group}": option} for group, option in choices.items()]
        for group, preset in layer.presets.items():
            store.store(group=group, name=layer.choices[group], node=preset.values)
        variables = {VARIABLES: layer.variables} if layer.variables else {}
        node = {"defaults": [*chosen, "_self_"], **layer.values, **variables}
        store.store(group=_LAYER, name=f"l{i}", package="_global_", node=node)


def last_choices(layers: list[Layer]) -> list[dict[str, str]]:
    """The group choices of each layer that take effect: of a group, only the last one does."""
    last = {group: i for i, layer in enumerate(layers) for group in layer.choices}
    return [
        {group: option for group, option in layer.choices.items() if last[group] == i}
        for i, layer in enumerate(layers)
    ]


def _one_line(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key = getattr(cause, "full_key", None) or "config"
    text = str(cause).partition("\n")[0]
    unset = re.search(r"Environment variable '(\w+)' not found", text)
    if unset:
        return f"{key}: the environment variable {unset[1]} is not set, which its value refers to"
    return f"{key}: {text}. A literal `${{` is written `\\${{`"


def override_values(overrides: list[str]) -> dict[str, Any]:
    """The keys that overrides set, with their values."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    return {override.key_or_group: override.value() for override in parsed}

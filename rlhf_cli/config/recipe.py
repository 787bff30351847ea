"""Recipes: YAML files of keys and values, read with the line of every key."""

import os.path
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from rlhf_cli.config.nearest import nearest, nearest_path
from rlhf_cli.config.yaml12 import Loader
from rlhf_cli.errors import ConfigError
from rlhf_cli.resources import recipe_names, shipped_folder

DEEPEST = 32
"""Levels of lists and mappings in each other; OmegaConf runs out of stack at about 70."""


@dataclass
class Recipe:
    """What one file sets."""

    name: str
    """The file, as the user named it."""

    folder: Path
    stage: str = ""
    """The command it is written for; empty if it does not say."""

    choices: dict[str, str] = field(default_factory=dict)
    """Groups set by one word, as in `model: tiny`."""

    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def origin(self, key: str) -> str:
        """Where a key stands, as in `sft.yaml:7`."""
        return f"{self.name}:{self.lines[key]}"


def find(name: str) -> Path:
    """The file of `config=NAME`: a shipped recipe, else a path.

    Raises:
        ConfigError: There is no such file.
    """
    if name in recipe_names():
        return shipped_folder("recipes") / f"{name}.yaml"
    path = os.path.expanduser(name)
    if os.path.isfile(path):
        return Path(path)
    inside = os.path.join(name, "config.yaml")
    if os.path.isdir(path):
        file = inside if os.path.isfile(inside) else os.path.join(name, "FILE.yaml")
        raise ConfigError(f"config: {name} is a folder; need a file. Try config={file}")
    close = nearest_path(path) or nearest(name, recipe_names(), 0.5) or "FILE.yaml"
    advice = f"Try config={close}"
    raise ConfigError(
        f"config: got {name or 'nothing'}; no such file and no shipped recipe. {advice}"
    )


def read(path: Path, name: str, groups: Collection[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: The file.
        name: How messages call it.
        groups: Keys that may be set by one word (`model: tiny`); these go to `choices`.

    Raises:
        ConfigError: The file is not a YAML mapping.
    """
    recipe = Recipe(name, path.resolve().parent)
    root = _parse(path, name)
    for key, value in _Builder(recipe).mapping(root, "").items():
        first, *rest = key.split(".")
        if key == "stage":
            recipe.stage = str(value)
        elif key in groups and isinstance(value, str):
            recipe.choices[key] = value
        elif first in ("defaults", "hydra"):
            advice = "choose groups as in `model: tiny`" if first == "defaults" else "leave it out"
            recipe.problems.append(f"{key}: not for recipes; {advice}  ({recipe.origin(key)})")
        else:
            _place(recipe.values, [first, *rest], value)
    return recipe


def _parse(path: Path, name: str) -> yaml.MappingNode:
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=Loader)
    except RecursionError:
        raise ConfigError(f"{name}: nested more than {DEEPEST} deep; take levels out") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{name}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"{name}: not valid YAML: {text}") from None
    if root is None:
        raise ConfigError(f"{name}: empty; need at least one `key: value` line")
    if not isinstance(root, yaml.MappingNode):
        line = root.start_mark.line + 1
        raise ConfigError(f"{name}:{line}: got no `key: value`; a recipe is a mapping")
    return root


def _place(values: dict[str, Any], parts: list[str], value: Any) -> None:
    """Set a dotted key (`train.lr: 1e-4` beside `train: {epochs: 2}`)."""
    *parents, last = parts
    for part in parents:
        inner = values.setdefault(part, {})
        values = inner if isinstance(inner, dict) else {}
    if isinstance(value, dict) and isinstance(values.get(last), dict):
        values[last].update(value)
    else:
        values[last] = value


class _Builder:
    """Turns YAML nodes into values and notes the line of every key."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.scalars = Loader("")
        self.open: set[int] = set()

    def mapping(self, node: yaml.MappingNode, prefix: str) -> dict[str, Any]:
        own = len(node.value)
        self.scalars.flatten_mapping(node)  # merge keys (`<<`) come first, then the node's own
        inherited = len(node.value) - own
        result = {}
        for i, (key_node, value_node) in enumerate(node.value):
            key = self._key(key_node, prefix, repeatable=i < inherited)
            if key is not None:
                full = f"{prefix}.{key}" if prefix else key
                self.recipe.lines[full] = key_node.start_mark.line + 1
                result[key] = self.value(value_node, full)
        return result

    def _key(self, node: yaml.Node, prefix: str, *, repeatable: bool) -> str | None:
        line = node.start_mark.line + 1
        where = f"({self.recipe.name}:{line})"
        if not isinstance(node, yaml.ScalarNode) or not node.tag.endswith(":str"):
            shown = node.value if isinstance(node, yaml.ScalarNode) else "a list or mapping"
            self.recipe.problems.append(
                f"{prefix or 'key'}: got {shown} as a key; need text  {where}"
            )
            return None
        key = str(node.value)
        full = f"{prefix}.{key}" if prefix else key
        if key == "_target_":
            self.recipe.problems.append(f"{full}: not for recipes; they name no code  {where}")
            return None
        if full in self.recipe.lines and not repeatable:
            first = self.recipe.lines[full]
            self.recipe.problems.append(
                f"{full}: given twice, first in line {first}; need it once  {where}"
            )
        return key

    def value(self, node: yaml.Node, key: str) -> Any:
        if id(node) in self.open:
            raise ConfigError(f"{self.recipe.origin(key)}: {key} holds itself (a YAML anchor)")
        if len(self.open) == DEEPEST:
            raise ConfigError(
                f"{self.recipe.origin(key)}: nested more than {DEEPEST} deep; take levels out"
            )
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, key)
            if isinstance(node, yaml.SequenceNode):
                return list(self._items(node, key))
            return self._scalar(node, key)
        except ValueError:  # Python reads no integers of more than 4300 digits
            raise ConfigError(f"{self.recipe.origin(key)}: {key}: not a number") from None
        except yaml.MarkedYAMLError as error:
            raise ConfigError(f"{self.recipe.origin(key)}: {key}: {error.problem}") from None
        finally:
            self.open.remove(id(node))

    def _scalar(self, node: yaml.ScalarNode, key: str) -> Any:
        if node.value == "???":  # Hydra's word for a value to come; it would be skipped in silence
            text = (
                f"{key}: got ???; need a value, or leave the key out  ({self.recipe.origin(key)})"
            )
            self.recipe.problems.append(text)
        return self.scalars.construct_object(node)

    def _items(self, node: yaml.SequenceNode, key: str) -> Iterator[Any]:
        for i, item in enumerate(node.value):
            full = f"{key}[{i}]"
            self.recipe.lines[full] = item.start_mark.line + 1
            yield self.value(item, full)

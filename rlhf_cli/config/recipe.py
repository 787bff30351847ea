"""Recipes: YAML files of keys and values, with the line of every key."""

import os.path
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rlhf_cli.config import deprecations
from rlhf_cli.config.schema import flatten
from rlhf_cli.config.suggest import nearest, nearest_path
from rlhf_cli.config.yaml_files import Document, read_document
from rlhf_cli.errors import ConfigError
from rlhf_cli.resources import recipe_names, shipped_folder


@dataclass(kw_only=True)
class Recipe(Document):
    """What one recipe sets.

    Attributes:
        values: nested, without those that have an attribute of their own.
        folder: that paths in it may be relative to.
        stage: the command it is written for; empty if it does not say.
        base: the recipe that it starts from; empty for none.
        choices: groups set by a preset or path, as in `model: tiny`.
        variables: what `${vars.NAME}` stands for.
        sweep: key -> the values that `-m` runs.
        notes: a line for each key or value that it has by an older name.
    """

    folder: Path
    stage: str = ""
    base: str = ""
    choices: dict[str, str] = field(default_factory=dict)
    variables: dict[str, Any] = field(default_factory=dict)
    sweep: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def find(name: str) -> Path:
    """Find the file of `config=NAME`: a shipped recipe, else a path.

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


def read(
    path: Path,
    name: str,
    groups: Collection[str] = (),
    short_names: Mapping[str, str] = MappingProxyType({}),
) -> Recipe:
    """Read a recipe; old names of keys and values are read as the new ones.

    Args:
        path: the file.
        name: how messages call it.
        groups: keys that may be set by a preset or path (`model: tiny`); these go to `choices`.
        short_names: short name -> key, for names such as `lr` at the root.

    Raises:
        ConfigError: The file is not a YAML mapping.
    """
    document = read_document(path, name)
    recipe = Recipe(
        name=name, lines=document.lines, problems=document.problems, folder=path.resolve().parent
    )
    values = _rename(recipe, document.values, short_names)
    for key, value in values.items():
        first, *rest = key.split(".")
        if key in ("stage", "base"):
            setattr(recipe, key, _word(recipe, key, value))
        elif first == "vars":
            _place(recipe.variables, rest or [first], value)
        elif key in groups and isinstance(value, str):
            recipe.choices[key] = value
        elif first in ("defaults", "hydra"):
            advice = "choose groups as in `model: tiny`" if first == "defaults" else "leave it out"
            recipe.problems.append(f"{key}: not for recipes; {advice}  ({recipe.origin(key)})")
        else:
            _place(recipe.values, [first, *rest], value)
    _take_variables(recipe)
    _take_sweep(recipe, short_names)
    return recipe


def read_chain(
    name: str, groups: Collection[str] = (), short_names: Mapping[str, str] = MappingProxyType({})
) -> list[Recipe]:
    """Read the recipe of `config=NAME` and those that it starts from, the first base first.

    Raises:
        ConfigError: One of them cannot be found or read, or they start from each other.
    """
    path, shown = find(name), f"{name}.yaml" if name in recipe_names() else name
    files, chain = [path.resolve()], [read(path, shown, groups, short_names)]
    while chain[-1].base:
        path, shown = _find_base(chain[-1])
        if path.resolve() in files:
            names = " -> ".join([*(recipe.name for recipe in chain), shown])
            where = chain[-1].origin("base")
            raise ConfigError(f"base: {names} is a circle; need a recipe without base  ({where})")
        files.append(path.resolve())
        chain.append(read(path, shown, groups, short_names))
    return chain[::-1]


def _find_base(recipe: Recipe) -> tuple[Path, str]:
    """The file that a recipe starts from, and how messages call it."""
    name = recipe.base
    if name in recipe_names():
        return shipped_folder("recipes") / f"{name}.yaml", f"{name}.yaml"
    path = recipe.folder / os.path.expanduser(name)
    if os.path.isfile(path):
        beside = os.path.join(os.path.dirname(recipe.name), os.path.expanduser(name))
        return path, os.path.normpath(beside)
    close = nearest_path(str(path)) and os.path.relpath(nearest_path(str(path)), recipe.folder)
    advice = f"Try base: {close or nearest(name, recipe_names(), 0.5) or 'FILE.yaml'}"
    raise ConfigError(
        f"base: got {name}; no such file beside {recipe.name} and no shipped recipe. {advice}  "
        f"({recipe.origin('base')})"
    )


def _word(recipe: Recipe, key: str, value: Any) -> str:
    """The text of a key that is none of a command's."""
    if isinstance(value, dict | list) or value is None:
        text = f"{key}: got {'nothing' if value is None else 'keys or a list'}; need one name"
        recipe.problems.append(f"{text}  ({recipe.origin(key)})")
        return ""
    return str(value)


_NAME = re.compile(r"[A-Za-z_]\w*")


def _take_variables(recipe: Recipe) -> None:
    """Take the variables out of the one mapping that `vars` is."""
    whole = recipe.variables.pop("vars", {})
    if isinstance(whole, dict):
        recipe.variables = {**whole, **recipe.variables}
    else:
        text = "vars: got no names; need names with values, as in vars: {size: 256}"
        recipe.problems.append(f"{text}  ({recipe.origin('vars')})")
    for name in recipe.variables:
        if not _NAME.fullmatch(name):
            text = f"vars.{name}: need a name of letters, digits and underscores"
            recipe.problems.append(f"{text}  ({recipe.origin(f'vars.{name}')})")


OBJECTIVE = ("metric", "mode")
"""Keys of `sweep` that say what runs are compared by; all others are swept."""


def _take_sweep(recipe: Recipe, short_names: Mapping[str, str]) -> None:
    """Take the swept keys out of `sweep`, each by its full name."""
    values = recipe.values.get("sweep")
    if not isinstance(values, dict):
        return
    swept = flatten({key: values.pop(key) for key in list(values) if key not in OBJECTIVE})
    for key, value in swept.items():
        items = value if isinstance(value, list) else [value]
        found = [deprecations.rename(short_names.get(key, key), item) for item in items]
        name = found[0].key if found else short_names.get(key, key)
        recipe.lines.setdefault(f"sweep.{name}", recipe.lines[f"sweep.{key}"])
        recipe.notes += [f"{f.note}  ({recipe.origin(f'sweep.{key}')})" for f in found if f.note]
        recipe.sweep[name] = [f.value for f in found] if isinstance(value, list) else value


def _rename(
    recipe: Recipe, values: dict[str, Any], short_names: Mapping[str, str]
) -> dict[str, Any]:
    """Rename deprecated keys; a renamed key moves to the root under its full name."""
    moved: dict[str, Any] = {}

    def rename(values: dict[str, Any], prefix: str) -> dict[str, Any]:
        kept = {}
        for name, value in values.items():
            key = prefix + name
            found = deprecations.rename(short_names.get(key, key), value)
            if found.note:
                recipe.notes.append(f"{found.note}  ({recipe.origin(key)})")
            if found.key != key:
                _move_lines(recipe, key, found.key)
                moved[found.key] = found.value
            elif isinstance(value, dict):
                kept[name] = rename(value, f"{key}.")
            else:
                kept[name] = found.value
        return kept

    return rename(values, "") | moved


def _move_lines(recipe: Recipe, old: str, new: str) -> None:
    """Give the keys at and below a renamed one their lines; refuse it beside its new name."""
    if new in recipe.lines:
        text = f"{old}: given beside {new}, which is the same key; need one of the two"
        recipe.problems.append(f"{text}  ({recipe.origin(old)})")
    for key, line in list(recipe.lines.items()):
        if key == old or key.startswith((f"{old}.", f"{old}[")):
            recipe.lines.setdefault(new + key.removeprefix(old), line)


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

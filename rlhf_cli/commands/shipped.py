"""`rlhf recipes` and `rlhf docs`: list, print and copy files that ship with the package."""

import os.path
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlhf_cli.config import paths, recipe
from rlhf_cli.config.paths import named_inputs
from rlhf_cli.config.recipe import Recipe
from rlhf_cli.config.schema import field_types, groups
from rlhf_cli.config.suggest import nearest
from rlhf_cli.console import format_table
from rlhf_cli.errors import ConfigError
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resources import page_names, presets, recipe_names, shipped_folder

WIDTH = 100

MODELINE = "# yaml-language-server: $schema="
"""First line of a shipped recipe: the schema with which editors complete and check it."""

SCHEMA = "schema/recipe.json"


def run_recipes(args: list[str]) -> None:
    """Run `rlhf recipes WORDS`.

    Raises:
        ConfigError: no such action or recipe, or the copy cannot be written.
    """
    action, *rest = args or ["ls"]
    if action not in _ACTIONS:
        close = nearest(action, _ACTIONS) or ("show" if action in recipe_names() else "ls")
        advice = f"Try rlhf recipes {close}{f' {action}' if action in recipe_names() else ''}"
        raise ConfigError(f"recipes: got {action}; need one of {', '.join(_ACTIONS)}. {advice}")
    function, least, most = _ACTIONS[action]
    if len(rest) < least:
        advice = f"Try rlhf recipes {action} {recipe_names()[0]}"
        raise ConfigError(f"recipes {action}: got no name; need that of a recipe. {advice}")
    if len(rest) > most:
        advice = "See rlhf recipes --help"
        raise ConfigError(
            f"recipes {action}: got {' '.join(rest)}; need {_TOO_MANY[most]}. {advice}"
        )
    function(*rest)


def _list_recipes() -> None:
    indent = max(map(len, recipe_names())) + 2
    entries = []
    for name in recipe_names():
        lines = textwrap.wrap(_purpose(name), WIDTH - indent)
        entries.append(f"{name:<{indent}}" + f"\n{'':<{indent}}".join(lines))
    print("\n".join(entries), flush=True)


def _purpose(name: str) -> str:
    """First line of a recipe's comment, after the one that names its schema."""
    lines = _recipe_file(name).read_text(encoding="utf-8").split("\n")
    return lines[lines[0].startswith(MODELINE)].removeprefix("# ")


def _show_recipe(name: str) -> None:
    print(_find_recipe("show", name).read_text(encoding="utf-8"), end="", flush=True)


def _copy_recipe(name: str, target: str = "") -> None:
    source = _find_recipe("cp", name)
    path = Path(os.path.expanduser(target or source.name))
    if path.is_dir():
        path /= source.name
    text = _with_absolute_paths(source, path)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        advice = f"Try rlhf recipes cp {name} {path.with_stem(f'{path.stem}-2')}"
        raise ConfigError(f"recipes cp: {path} is there already. {advice}") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"recipes cp: {path} cannot be written ({reason})") from None
    stage = recipe.read(source, name).stage
    print(f"{path}: a copy of {name}. Change it, then run rlhf {stage or 'STAGE'} config={path}")


def _find_recipe(action: str, name: str) -> Path:
    name = name.removesuffix(".yaml")
    if name in recipe_names():
        return _recipe_file(name)
    close = nearest(name, recipe_names(), 0.5)
    advice = f"Try rlhf recipes {action} {close}" if close else "See rlhf recipes ls"
    raise ConfigError(f"recipes {action}: {name} is no shipped recipe. {advice}")


def _recipe_file(name: str) -> Path:
    return shipped_folder("recipes") / f"{name}.yaml"


def _with_absolute_paths(source: Path, target: Path) -> str:
    """Text of a recipe with absolute paths to the files beside it."""
    # as in YAML, whose line numbers are used here, U+0085, U+2028 and U+2029 also end a line
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines[0].startswith(MODELINE):
        lines[0] = f"{MODELINE}{shipped_folder('configs') / SCHEMA}\n"
    configs = _configs(recipe.read(source, source.name).stage)
    read = recipe.read(source, source.name, {key for config in configs for key in groups(config)})
    for key, value in dict(pair for config in configs for pair in _inputs(read, config)).items():
        absolute = paths.anchor(value, read.folder)
        if absolute != value:
            before, _, after = lines[read.lines[key] - 1].rpartition(value)
            lines[read.lines[key] - 1] = f"{before}{absolute}{after}"
            print(f"{target}: {key} is {absolute}", file=sys.stderr)
    return "".join(lines)


def _configs(stage: str) -> list[type[Any]]:
    """Config classes whose keys a recipe can have: its stage's, or all if it names none."""
    return [c.config for c in COMMANDS.values() if c.name == stage or (not stage and c.trains)]


def _inputs(read: Recipe, config: type[Any]) -> Iterator[tuple[str, str]]:
    """Yield every key of a recipe that names something to read, with its value."""
    if read.base:
        yield "base", read.base
    for group, choice in read.choices.items():
        if choice not in presets(group) and "path" in field_types(groups(config)[group]):
            yield group, choice
    for named in named_inputs(read.values, config):
        yield named.key, named.value


_ACTIONS: dict[str, tuple[Callable[..., None], int, int]] = {
    "ls": (_list_recipes, 0, 0),
    "show": (_show_recipe, 1, 1),
    "cp": (_copy_recipe, 1, 2),
}
"""Action -> its function, and the least and most arguments."""

_TOO_MANY = {0: "no arguments", 1: "one name", 2: "a name and a target"}


def run_docs(args: list[str]) -> None:
    """Run `rlhf docs ARGS`.

    Raises:
        ConfigError: there is no such page, or more than one name.
    """
    if len(args) > 1:
        advice = f"Try rlhf docs {args[0]}"
        raise ConfigError(f"docs: got {' '.join(args)}; need one name. {advice}")
    print(_read_page(args[0]) if args else _list_pages(), flush=True)


def _list_pages() -> str:
    """Format name and title of each page."""
    return format_table([(name, _title(name)) for name in page_names()])


def _title(name: str) -> str:
    return _page_text(name).partition("\n")[0].removeprefix("# ")


def _read_page(arg: str) -> str:
    name = arg.rpartition("/")[2].removesuffix(".md")
    if name not in page_names():
        close = nearest(name, page_names(), 0.5)
        advice = f"Try rlhf docs {close}" if close else "See rlhf docs"
        raise ConfigError(f"docs: {arg} is no page of the documentation. {advice}")
    return _page_text(name).rstrip("\n")


def _page_text(name: str) -> str:
    return (shipped_folder("docs") / f"{name}.md").read_text(encoding="utf-8")

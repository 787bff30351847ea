"""The shipped recipes: list them, print one, copy one to change it."""

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
from rlhf_cli.errors import ConfigError
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resources import presets, recipes, shipped

WIDTH = 100

MODELINE = "# yaml-language-server: $schema="
"""First line of a shipped recipe: the schema with which editors complete and check it."""

SCHEMA = "schema/recipe.json"


def run(words: list[str]) -> None:
    """Do what `rlhf recipes WORDS` says.

    Raises:
        ConfigError: The words ask for nothing that is there, or the copy cannot be written.
    """
    action, *rest = words or ["ls"]
    if action not in _ACTIONS:
        close = nearest(action, _ACTIONS) or ("show" if action in recipes() else "ls")
        advice = f"Try rlhf recipes {close}{f' {action}' if action in recipes() else ''}"
        raise ConfigError(f"recipes: got {action}; need one of {', '.join(_ACTIONS)}. {advice}")
    function, least, most = _ACTIONS[action]
    if len(rest) < least:
        advice = f"Try rlhf recipes {action} {recipes()[0]}"
        raise ConfigError(f"recipes {action}: got no name; need that of a recipe. {advice}")
    if len(rest) > most:
        advice = "See rlhf recipes --help"
        raise ConfigError(
            f"recipes {action}: got {' '.join(rest)}; need {_TOO_MANY[most]}. {advice}"
        )
    function(*rest)


def _list() -> None:
    indent = max(map(len, recipes())) + 2
    entries = []
    for name in recipes():
        lines = textwrap.wrap(_purpose(name), WIDTH - indent)
        entries.append(f"{name:<{indent}}" + f"\n{'':<{indent}}".join(lines))
    print("\n".join(entries), flush=True)


def _purpose(name: str) -> str:
    """The first line of a recipe's comment, behind the one that names its schema."""
    lines = _file(name).read_text(encoding="utf-8").split("\n")
    return lines[lines[0].startswith(MODELINE)].removeprefix("# ")


def _show(name: str) -> None:
    print(_known("show", name).read_text(encoding="utf-8"), end="", flush=True)


def _copy(name: str, target: str = "") -> None:
    source = _known("cp", name)
    path = Path(os.path.expanduser(target or source.name))
    if path.is_dir():
        path /= source.name
    text = _portable(source, path)
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


def _known(action: str, name: str) -> Path:
    name = name.removesuffix(".yaml")
    if name in recipes():
        return _file(name)
    close = nearest(name, recipes(), 0.5)
    advice = f"Try rlhf recipes {action} {close}" if close else "See rlhf recipes ls"
    raise ConfigError(f"recipes {action}: {name} is no shipped recipe. {advice}")


def _file(name: str) -> Path:
    return shipped("recipes") / f"{name}.yaml"


def _portable(source: Path, target: Path) -> str:
    """The recipe's text, with absolute paths for what lies beside it."""
    # YAML, whose line numbers are looked up here, also ends a line at U+0085, U+2028 and U+2029
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines[0].startswith(MODELINE):
        lines[0] = f"{MODELINE}{shipped('configs') / SCHEMA}\n"
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
    """Whose keys a recipe can have: its stage's; a layer that names none is for any."""
    return [c.config for c in COMMANDS.values() if c.name == stage or (not stage and c.trains)]


def _inputs(read: Recipe, config: type[Any]) -> Iterator[tuple[str, str]]:
    """Every key of a recipe that names something to read, with the name."""
    if read.base:
        yield "base", read.base
    for group, word in read.choices.items():
        if word not in presets(group) and "path" in field_types(groups(config)[group]):
            yield group, word
    for named in named_inputs(read.values, config):
        yield named.key, named.value


_ACTIONS: dict[str, tuple[Callable[..., None], int, int]] = {
    "ls": (_list, 0, 0),
    "show": (_show, 1, 1),
    "cp": (_copy, 1, 2),
}
"""What each does, and how many words it takes."""

_TOO_MANY = {0: "no more words", 1: "one name", 2: "a name and a target"}

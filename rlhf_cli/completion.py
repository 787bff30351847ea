"""Completion of commands, keys and values in bash, zsh and fish, through argcomplete.

The shell starts `rlhf` at every press of the tab key, so this module imports neither the config
classes nor torch: keys and choices are read from the shipped JSON Schema of recipes.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_cli.errors import ConfigError
from rlhf_cli.resources import page_names, recipe_names, shipped_folder

VARIABLE = "_ARGCOMPLETE"
"""Environment variable by which the shell asks for completions."""

SHELLS = ("bash", "zsh", "fish")

SWITCHES = ("--help", "--cfg", "--provenance", "--dry-run", "--quiet", "--json", "-m")

RUNS = "runs"
"""Folder whose sub-folders are offered where a model is named."""

Schema = dict[str, Any]
Candidates = dict[str, str]
"""Word -> what it means, which zsh and fish show."""


def complete() -> None:
    """Print the completions of the line that the shell gives in the environment, and exit."""
    import argcomplete
    from argcomplete.completers import SuppressCompleter

    parser = argparse.ArgumentParser(add_help=False)
    for switch in SWITCHES:
        parser.add_argument(switch, action="store_true")
    words = parser.add_argument("words", nargs="*")
    words.completer = _complete_word  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, default_completer=SuppressCompleter())


def _complete_word(prefix: str, parsed_args: argparse.Namespace, **_: object) -> Candidates:
    """Candidates of one word, from the words before it."""
    before = parsed_args.words
    return find_candidates([*before, prefix])


def find_candidates(words: list[str]) -> Candidates:
    """Find what the last of some words can become.

    Args:
        words: after `rlhf`; the last one is incomplete and may be empty.
    """
    *before, prefix = words
    schema = read_schema()
    commands: list[str] = schema["properties"]["stage"]["enum"]
    if not before:
        from rlhf_cli.tools import TOOLS

        tools = {name: tool.purpose for name, tool in TOOLS.items()}
        found = dict.fromkeys(commands, "") | tools
    elif before[0] in commands:
        found = _arguments(schema, before[0], prefix)
    else:
        found = _tool_arguments(before[0], before[1:], prefix)
    return {word: meaning for word, meaning in found.items() if word.startswith(prefix)}


def read_schema() -> Schema:
    """The JSON Schema of recipes."""
    file = shipped_folder("configs") / "schema" / "recipe.json"
    found: Schema = json.loads(file.read_text(encoding="utf-8"))
    return found


def _arguments(schema: Schema, command: str, prefix: str) -> Candidates:
    """Keys of a command, or values of the key that the word sets."""
    keys = dict(_keys(schema, schema["$defs"][command]["properties"]))
    key, equals, text = prefix.partition("=")
    if key == "config" and equals:
        return dict.fromkeys([f"config={name}" for name in (*recipe_names(), *_paths(text))], "")
    if not equals:
        listed = {f"{name}=": str(one.get("description", "")) for name, one in keys.items()}
        return {"config=": "Recipe.", **listed, **dict.fromkeys(_paths(prefix), "")}
    if key not in keys:
        return {}
    values = [*_choices(schema, keys[key]), *_values_by_name(schema, key, keys[key], text)]
    return dict.fromkeys([f"{key}={value}" for value in values], "")


def _keys(schema: Schema, properties: Schema, group: str = "") -> Iterator[tuple[str, Schema]]:
    """Every key with its schema: `data`, then `data.path` and the others of the group."""
    for name, one in properties.items():
        if name in ("stage", "base", "vars"):
            continue
        if "properties" not in one:  # a group below a group is no choice by itself
            yield group + name, one
        for part in [one] if group else one.get("anyOf", ()):
            inner = _resolve(schema, part).get("properties")
            if inner:
                yield from _keys(schema, inner, f"{group}{name}.")


def _resolve(schema: Schema, part: Schema) -> Schema:
    """Follow a reference to another part of the schema."""
    pointer = part.get("$ref")
    if not pointer:
        return part
    for step in pointer.removeprefix("#/").split("/"):
        schema = schema[step]
    return schema


def _choices(schema: Schema, one: Schema) -> list[str]:
    """Named values of a key."""
    one = _resolve(schema, one)
    parts = [_resolve(schema, part) for part in one.get("anyOf", [one])]
    named = [value for part in parts for value in part.get("enum", ())]
    if any(part.get("type") == "boolean" for part in parts):
        named += ["true", "false"]
    return [json.dumps(value) if isinstance(value, bool) else str(value) for value in named]


_NAMES_A_RUN = ("model", "model.path", "model.reference", "baseline", "reward.model")


def _values_by_name(schema: Schema, key: str, one: Schema, text: str) -> list[str]:
    """Paths of files for a key that takes text; run folders first where it names a model."""
    parts = [_resolve(schema, part) for part in one.get("anyOf", [one])]
    groups = [part["properties"] for part in parts if "properties" in part]
    if not any(part.get("type") == "string" and "pattern" not in part for part in parts):
        return []
    if groups and not any("path" in group for group in groups):
        return []  # a preset, not a path
    runs = _run_folders() if key in _NAMES_A_RUN and not text else []
    return [*runs, *_paths(text)]


def _run_folders() -> list[str]:
    return sorted(str(path.parent) for path in Path(RUNS).glob("*/manifest.json"))


def _paths(text: str) -> list[str]:
    """Files and folders whose path begins with a text; folders end with `/`."""
    folder = Path(text).expanduser() if text.endswith("/") else Path(text).expanduser().parent
    start = text[: len(text) - len(text.rpartition("/")[2])]
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    named = [
        f"{start}{entry.name}{'/' if entry.is_dir() else ''}"
        for entry in entries
        if not entry.name.startswith(".")
    ]
    return [path for path in named if path.startswith(text)]


def _tool_arguments(tool: str, before: list[str], prefix: str) -> Candidates:
    """First words of a tool's forms, then names of recipes, pages or files."""
    from rlhf_cli.tools import TOOLS

    if tool not in TOOLS:
        return {}
    forms = {form.partition(" ")[0]: meaning for form, meaning in TOOLS[tool].forms.items()}
    words = {word: meaning for word, meaning in forms.items() if word.islower()}
    found = {} if before else words
    if tool == "recipes" and before[:1] in (["show"], ["cp"]):
        return found | dict.fromkeys(recipe_names(), "")
    if tool == "docs" and not before:
        return found | dict.fromkeys(page_names(), "")
    return found | dict.fromkeys([*_run_folders(), *_paths(prefix)], "")


def run(args: list[str]) -> None:
    """Run `rlhf completion SHELL`: print the code that a shell's start-up file evaluates.

    Raises:
        ConfigError: no shell, or another than these is named.
    """
    if len(args) != 1 or args[0] not in SHELLS:
        got = " ".join(args) or "nothing"
        raise ConfigError(
            f"completion: got {got}; need one of {', '.join(SHELLS)}. "
            'Try eval "$(rlhf completion bash)" in ~/.bashrc'
        )
    from argcomplete.shell_integration import shellcode

    print(shellcode(["rlhf"], shell=args[0]), flush=True)

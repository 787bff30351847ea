"""JSON Schema (draft 2020-12) of recipes, with which editors complete and check them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from rlhf_cli.config.command import Command
from rlhf_cli.config.compose import VARIABLES
from rlhf_cli.config.help import docs, first_sentence
from rlhf_cli.config.presets import preset_files
from rlhf_cli.config.recipe import OBJECTIVE
from rlhf_cli.config.schema import (
    Constraints,
    Ge,
    Gt,
    Le,
    Lt,
    aliases,
    field_types,
    is_group,
    is_union,
    options,
    split_annotated,
)

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
_LIMITS = {
    Gt: ("gt", "exclusiveMinimum"),
    Ge: ("ge", "minimum"),
    Lt: ("lt", "exclusiveMaximum"),
    Le: ("le", "maximum"),
}
_REFERENCE: Schema = {
    "type": "string",
    "pattern": r"\$\{",
    "description": "A reference, as ${vars.NAME}, ${oc.env:NAME} or ${seed}.",
}


def recipe_schema(commands: Iterable[Command]) -> Schema:
    """The schema of a recipe for one of several commands; the key `stage` says for which.

    A recipe without `stage`, such as a layer, is one for any of them.
    """
    listed = list(commands)
    definitions: dict[str, Schema] = {"reference": _REFERENCE}
    for command in listed:
        definitions[command.name] = _command(command, definitions)
    named = [command.name for command in listed]
    one: Schema = {"$schema": DIALECT, "title": f"Recipe of rlhf {' | '.join(named)}"}
    if len(named) == 1:
        return {**one, "$ref": _pointer(named[0]), "$defs": definitions}
    chosen = [
        {
            "if": {"properties": {"stage": {"const": name}}, "required": ["stage"]},
            "then": {"$ref": _pointer(name)},
        }
        for name in named
    ]
    anonymous = {
        "if": {"not": {"required": ["stage"]}},
        "then": {"anyOf": [{"$ref": _pointer(name)} for name in named]},
    }
    stage = {"enum": named, "description": "The command that the recipe is for."}
    return {
        **one,
        "type": "object",
        "properties": {"stage": stage},
        "allOf": [*chosen, anonymous],
        "$defs": definitions,
    }


def _pointer(name: str) -> str:
    return f"#/$defs/{name}"


def _command(command: Command, definitions: dict[str, Schema]) -> Schema:
    """The schema of a command's recipe; the groups are added to the definitions."""
    root = _Types(command.name, definitions).keys(command.config())
    groups = {name: part["$ref"] for name, part in _references(root)}
    properties: dict[str, Schema] = {
        "stage": {"const": command.name, "description": "The command that the recipe is for."},
        "base": {
            "type": "string",
            "description": "The recipe that this one starts from: a shipped name, as tiny/sft, or "
            "a path relative to this file.",
        },
        VARIABLES: {
            "type": "object",
            "description": "Values that the recipe uses as ${vars.NAME}; the command line can set "
            "vars.NAME=VALUE.",
        },
    }
    for short, full in aliases(command.config).items():
        properties[short] = _at(groups, full) | {"description": f"Short name of {full}."}
    dotted = {
        f"^{re.escape(key)}$": _at(groups, key) for key in options(command.config) if "." in key
    }
    dotted |= {
        rf"^{re.escape(key)}\.": {}
        for key, option in options(command.config).items()
        if get_origin(split_annotated(option.type)[0]) is dict
    }
    patterns = {**dotted, rf"^{VARIABLES}\.": {}, r"^sweep\.": {}}
    return {**root, "properties": properties | root["properties"], "patternProperties": patterns}


def _references(root: Schema) -> list[tuple[str, Schema]]:
    """The groups of a command, each with the part of its schema for a mapping."""
    found = []
    for name, part in root["properties"].items():
        others = (one for one in part.get("anyOf", []) if "$ref" in one)
        found += [(name, one) for one in others if one["$ref"] != _pointer("reference")]
    return found


def _at(groups: dict[str, str], key: str) -> Schema:
    """A reference to the schema of a key below a group."""
    group, _, rest = key.partition(".")
    return {"$ref": f"{groups[group]}/properties/{rest.replace('.', '/properties/')}"}


@dataclass(frozen=True)
class _Types:
    """Schemas of the types of one command's options.

    Attributes:
        command: name of the command.
        definitions: of all commands; the groups of this one are added.
    """

    command: str
    definitions: dict[str, Schema]

    def keys(self, default: Any, *, nested: bool = False) -> Schema:
        """The keys of a config class, given an instance with the defaults.

        Args:
            default: the instance.
            nested: it stands below a group, and so has neither presets nor a definition.
        """
        texts = docs(default.__class__)
        properties: dict[str, Schema] = {}
        for name, kind in field_types(type(default)).items():
            value = getattr(default, name)
            if is_group(kind) and nested:
                about = {"description": first_sentence(kind.__doc__ or "")}
                properties[name] = {**self.keys(value, nested=True), **about}
                continue
            if is_group(kind):
                properties[name] = self.group(name, value)
                continue
            about = {"description": texts[name]} if name in texts else {}
            properties[name] = {**self.value(kind), **about, "default": value}
        return {"type": "object", "additionalProperties": False, "properties": properties}

    def group(self, name: str, default: Any) -> Schema:
        """A group: a preset or, where it has one, a path; or keys."""
        keys = self.keys(default, nested=True)
        if name == "sweep":
            keys["additionalProperties"] = {"type": ["array", "string", "object"]}
            keys["description"] = f"All keys but {' and '.join(OBJECTIVE)} are swept with -m."
        names = sorted(preset_files(name))
        words: list[Schema] = [{"enum": names}] if names else []
        if names or "path" in keys["properties"]:
            words.append({"type": "string"})  # a path, or a preset of the user's own
        shared = self.definitions.setdefault(name, keys) == keys
        own = name if shared else f"{self.command}.{name}"
        self.definitions[own] = keys
        purpose = first_sentence(type(default).__doc__ or "")
        return {"description": purpose, "anyOf": [*words, {"$ref": _pointer(own)}]}

    def value(self, annotation: Any) -> Schema:
        """One value, or a reference to one."""
        schema = self.exact(annotation)
        if not schema or schema.get("type") == "string":
            return schema
        parts = schema["anyOf"] if set(schema) == {"anyOf"} else [schema]
        return {"anyOf": [*parts, {"$ref": _pointer("reference")}]}

    def exact(self, annotation: Any) -> Schema:
        """One value that is no reference."""
        bare, constraints = split_annotated(annotation)
        if is_union(bare):
            return {"anyOf": [self.exact(part) for part in get_args(bare)]}
        if is_group(bare):
            return self.keys(bare())
        origin, parts = get_origin(bare), get_args(bare)
        if origin is Literal:
            return {"enum": list(parts)}
        if origin is list:
            return {"type": "array", "items": self.value(parts[0])}
        if origin is dict:
            return {"type": "object", "additionalProperties": self.value(parts[1])}
        return {"type": _TYPES[bare], **_range(constraints)} if bare in _TYPES else {}


def _range(constraints: Constraints) -> Schema:
    known = [(item, *_LIMITS[type(item)]) for item in constraints if type(item) in _LIMITS]
    return {limit: getattr(item, name) for item, name, limit in known}

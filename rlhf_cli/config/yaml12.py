"""The YAML we read and write: that of version 1.2, where `1e-4` is a number and `yes` is text."""

import re
from typing import Any, ClassVar

import yaml  # type: ignore[import-untyped]

from rlhf_cli.config.references import Reference
from rlhf_cli.config.schema import show

_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?"
    r"|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)"
)
_NULL = re.compile(r"~|null|Null|NULL|")


class Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads only what its patterns match as numbers and switches; dates stay text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes what either YAML version would take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:float", show(value))


def _write_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # PyYAML would write the last three as they stand and read them as line breaks; a line end or a
    # tab is seen best as its escape
    breaks = any(letter in value for letter in "\n\t\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if breaks else None)


_Dumper.add_representer(float, _write_float)
_Dumper.add_representer(str, _write_text)
_Dumper.add_representer(Reference, _write_text)
for _name, _pattern, _first in (
    ("bool", _BOOL, "tTfF"),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("null", _NULL, ["~", "n", "N", ""]),
    ("merge", re.compile("<<"), "<"),
):
    _exact = re.compile(rf"(?:{_pattern.pattern})$")
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _exact, list(_first))
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _exact, list(_first))


def to_yaml(stage: str, tree: dict[str, Any]) -> str:
    """Write a resolved configuration as a recipe that reads back to the same values."""
    plain = {"stage": stage, **escape(tree)}
    return str(yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))


def escape(value: Any) -> Any:
    """Keep a literal `${` from being read as a reference to another key."""
    if isinstance(value, dict):
        return {key: escape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escape(item) for item in value]
    if isinstance(value, Reference):
        return value
    return value.replace("${", "\\${") if isinstance(value, str) else value

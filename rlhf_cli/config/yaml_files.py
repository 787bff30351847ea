"""YAML 1.2 (`1e-4` is a number, `yes` is text): reading with the line of every key, writing."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml  # type: ignore[import-untyped]

from rlhf_cli.config.references import Reference
from rlhf_cli.config.values import format_value
from rlhf_cli.errors import ConfigError

DEEPEST = 32
"""Levels of lists and mappings in each other; OmegaConf runs out of stack at about 70."""

_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?"
    r"|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)"
)
_NULL = re.compile(r"~|null|Null|NULL|")


class Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Reads as numbers and switches only what the patterns match; dates stay text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes text that either YAML version would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:float", format_value(value))


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


@dataclass(kw_only=True)
class Document:
    """The keys of a YAML file.

    Attributes:
        name: the file, as messages call it.
        values: nested; a dotted key of the file (`train.lr: 1e-4`) stands as it is.
        lines: full key, with indices of lists -> line.
        problems: a line for the user each.
    """

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def origin(self, key: str) -> str:
        """Where a key stands, as in `sft.yaml:7`."""
        return f"{self.name}:{self.lines[key]}"


def read_document(path: Path, name: str) -> Document:
    """Read a YAML file.

    Raises:
        ConfigError: The file is not a YAML mapping.
    """
    document = Document(name=name)
    document.values = _Builder(document).mapping(_parse(path, name), "")
    return document


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


class _Builder:
    """Turns YAML nodes into values and notes the line of every key."""

    def __init__(self, document: Document) -> None:
        self.document = document
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
                self.document.lines[full] = key_node.start_mark.line + 1
                result[key] = self.value(value_node, full)
        return result

    def _key(self, node: yaml.Node, prefix: str, *, repeatable: bool) -> str | None:
        line = node.start_mark.line + 1
        where = f"({self.document.name}:{line})"
        if not isinstance(node, yaml.ScalarNode) or not node.tag.endswith(":str"):
            shown = node.value if isinstance(node, yaml.ScalarNode) else "a list or mapping"
            self.document.problems.append(
                f"{prefix or 'key'}: got {shown} as a key; need text  {where}"
            )
            return None
        key = str(node.value)
        full = f"{prefix}.{key}" if prefix else key
        if key == "_target_":
            self.document.problems.append(f"{full}: not for recipes; they name no code  {where}")
            return None
        if full in self.document.lines and not repeatable:
            first = self.document.lines[full]
            self.document.problems.append(
                f"{full}: given twice, first in line {first}; need it once  {where}"
            )
        return key

    def value(self, node: yaml.Node, key: str) -> Any:
        if id(node) in self.open:
            raise ConfigError(f"{self.document.origin(key)}: {key} holds itself (a YAML anchor)")
        if len(self.open) == DEEPEST:
            raise ConfigError(
                f"{self.document.origin(key)}: nested more than {DEEPEST} deep; take levels out"
            )
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, key)
            if isinstance(node, yaml.SequenceNode):
                return list(self._items(node, key))
            return self._scalar(node, key)
        except ValueError:  # Python reads no integers of more than 4300 digits
            raise ConfigError(f"{self.document.origin(key)}: {key}: not a number") from None
        except yaml.MarkedYAMLError as error:
            raise ConfigError(f"{self.document.origin(key)}: {key}: {error.problem}") from None
        finally:
            self.open.remove(id(node))

    def _scalar(self, node: yaml.ScalarNode, key: str) -> Any:
        if node.value == "???":  # Hydra's word for a value to come; it would be skipped in silence
            text = (
                f"{key}: got ???; need a value, or leave the key out  ({self.document.origin(key)})"
            )
            self.document.problems.append(text)
        return self.scalars.construct_object(node)

    def _items(self, node: yaml.SequenceNode, key: str) -> Iterator[Any]:
        for i, item in enumerate(node.value):
            full = f"{key}[{i}]"
            self.document.lines[full] = item.start_mark.line + 1
            yield self.value(item, full)

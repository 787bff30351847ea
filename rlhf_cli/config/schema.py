"""Annotations of config fields, and the options that a config class has.

lr: Annotated[float, Gt(0)] = 1e-4
path: Annotated[str, ModelPath()] = ""
"""

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

# the ranges that pydantic and hypothesis understand too
from annotated_types import Ge as Ge
from annotated_types import Gt as Gt
from annotated_types import Le as Le
from annotated_types import Lt as Lt


@dataclass(frozen=True)
class Unit:
    """What a number counts; shown in the help."""

    name: str


@dataclass(frozen=True)
class RuntimeOnly:
    """The option does not change what is computed; a run may be continued with another value."""


@dataclass(frozen=True)
class DataPath:
    """A file or folder of rows that must exist, or the shipped data `tiny` (else exit code 3)."""

    revision: str = ""
    """Name of the field that holds the revision of a hub id; empty for none."""


def no_rows(path: Any) -> bool:
    """Whether a data path names no rows: empty, `none` or `auto`."""
    return path in ("", "none", "auto")


@dataclass(frozen=True)
class ModelPath:
    """A model folder, a run folder, a shipped model or a hub id."""

    revision: str = ""
    """Name of the field that holds the revision of a hub id; empty for none."""

    base: str = ""
    """Name of the field that holds the base model of an adapter; empty for none. The revision of
    the base is in the field of that name with `_revision`."""

    words: tuple[str, ...] = ()
    """Values that are not a path."""

    urls: bool = False
    """Whether the address of a server is a value too."""


@dataclass(frozen=True)
class FilePath:
    """A file that must exist."""


@dataclass(frozen=True)
class FunctionPath:
    """A Python function in a file, as `FILE.py:FUNCTION`; the file must exist."""


@dataclass(frozen=True)
class OutputPath:
    """A path to write to; never resolved against a recipe."""


@dataclass(frozen=True)
class Escapes:
    r"""On the command line, `\n`, `\t`, `\r` and `\\` in the text are resolved.

    A shell passes them on as two characters. In a recipe, YAML resolves them in double quotes.
    """


Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
"""Range of a seed that every generator accepts; NumPy's is the narrowest."""

Constraints = tuple[Any, ...]
"""What stands beside the type in an `Annotated`."""


class InvalidValue(ValueError):
    """A value does not fit its annotation.

    Attributes:
        need: what is needed, where that says more than the type; else empty.
        example: a value to try; empty for none.
    """

    def __init__(self, needed: str = "", example: str = "") -> None:
        super().__init__(needed)
        self.need, self.example = needed, example


ALIASES = {
    "lr": "train.lr",
    "epochs": "train.epochs",
    "max_steps": "train.max_steps",
    "batch_size": "train.batch_size",
    "max_length": "data.max_length",
    "max_new_tokens": "sampling.max_new_tokens",
    "temperature": "sampling.temperature",
}
"""Short names of options."""


@dataclass(frozen=True)
class Option:
    """A key that a user can set."""

    key: str
    """Full dotted name, as in `train.lr`."""

    type: Any
    """The annotation, with its constraints."""

    default: Any
    owner: type[Any]
    """The config class that has the field."""

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]


def split_annotated(annotation: Any) -> tuple[Any, Constraints]:
    """Split `Annotated[float, Gt(0)]` into `float` and its constraints."""
    if get_origin(annotation) is Annotated:
        bare, *constraints = get_args(annotation)
        return bare, tuple(constraints)
    return annotation, ()


def is_union(annotation: Any) -> bool:
    """Whether the annotation is `A | B`."""
    return get_origin(annotation) in (Union, types.UnionType)


def is_group(annotation: Any) -> bool:
    """Whether the annotation is a config class, whose keys stand below it."""
    return isinstance(annotation, type) and is_dataclass(annotation)


def field_types(config: type[Any]) -> dict[str, Any]:
    """The fields of a config class with their annotations, in order of declaration."""
    hints = get_type_hints(config, include_extras=True)
    return {field.name: hints[field.name] for field in fields(config)}


def groups(config: type[Any]) -> dict[str, type[Any]]:
    """The fields of a config class that are config classes themselves."""
    return {name: kind for name, kind in field_types(config).items() if is_group(kind)}


def options(config: type[Any]) -> dict[str, Option]:
    """Every option of a config class by its full name, the root's own first."""
    found = list(_options(config(), ""))
    found.sort(key=lambda option: "." in option.key)
    return {option.key: option for option in found}


def _options(node: Any, prefix: str) -> Iterator[Option]:
    for name, annotation in field_types(type(node)).items():
        key, value = prefix + name, getattr(node, name)
        if is_group(annotation):
            yield from _options(value, f"{key}.")
        else:
            yield Option(key, annotation, value, type(node))


def key_type(config: type[Any], key: str) -> Any:
    """The annotation of a key, also of one below a mapping; None for an unknown key."""
    inner, known = groups(config), options(config)
    if key in inner:
        return inner[key]
    if key in known:
        return known[key].type
    parent = key.rpartition(".")[0]
    outer = split_annotated(key_type(config, parent))[0] if parent and parent not in inner else None
    if get_origin(outer) is dict:
        return get_args(outer)[1]
    return Any if outer is Any else None


def runtime_only(config: type[Any]) -> set[str]:
    """The keys of a config class that do not change the result of a run."""
    return {
        option.key
        for option in options(config).values()
        if RuntimeOnly() in split_annotated(option.type)[1]
    }


def aliases(config: type[Any]) -> dict[str, str]:
    """The short names that a config class has, with the full names that they stand for."""
    known = options(config)
    return {short: full for short, full in ALIASES.items() if full in known and short not in known}


def unused_options(cfg: Any, used: Mapping[str, bool]) -> dict[str, Any]:
    """Options that were set although the run does not use them: name -> default.

    Args:
        cfg: a dataclass.
        used: name of an option -> whether the run uses it.
    """
    defaults = {field.name: field.default for field in fields(cfg)}
    return {
        name: defaults[name]
        for name, is_used in used.items()
        if not is_used and getattr(cfg, name) != defaults[name]
    }


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn `{train: {lr: 1}}` into `{train.lr: 1}`; an empty mapping and a list are values."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found

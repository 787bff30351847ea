"""Marks that a config field carries in its annotation, and what they say to a user.

lr: Annotated[float, Above(0)] = 1e-4
path: Annotated[str, ModelPath()] = ""
"""

import re
import types
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Above:
    """The number must be greater than `bound`."""

    bound: float


@dataclass(frozen=True)
class Below:
    """The number must be less than `bound`."""

    bound: float


@dataclass(frozen=True)
class AtLeast:
    """The number must be `bound` or more."""

    bound: float


@dataclass(frozen=True)
class AtMost:
    """The number must be `bound` or less."""

    bound: float


@dataclass(frozen=True)
class Unit:
    """What the number counts; shown in the help."""

    name: str


@dataclass(frozen=True)
class Machinery:
    """The key does not change what is computed, so a run may go on with another value of it."""


@dataclass(frozen=True)
class DataPath:
    """A file or folder of rows that must exist, or the shipped data `tiny` (else exit 3)."""

    revision: str = ""
    """The field beside it that says which revision of a hub id; none where there is no such."""


def no_rows(path: Any) -> bool:
    """Whether a data path names no rows at all: left empty, `none`, or `auto`."""
    return path in ("", "none", "auto")


@dataclass(frozen=True)
class ModelPath:
    """A model folder, a run folder, a shipped model or a hub id."""

    revision: str = ""
    """The field beside it that says which revision of a hub id; none where there is no such."""

    base: str = ""
    """The field beside it that says where the base of an adapter is; none where there is no such.
    Its revision is in the field of that name with `_revision`."""

    words: tuple[str, ...] = ()
    """Values that name no model."""


@dataclass(frozen=True)
class FilePath:
    """A file that must exist."""


@dataclass(frozen=True)
class FunctionPath:
    """A Python function in a file, as `FILE.py:FUNCTION`; the file must exist."""


@dataclass(frozen=True)
class OutputPath:
    """A place to write; never resolved against a recipe."""


@dataclass(frozen=True)
class Escapes:
    r"""Typed on the command line, `\n`, `\t`, `\r` and `\\` in the text are resolved.

    A shell passes them on as two letters. In a recipe, YAML resolves those in double quotes.
    """


Seed = Annotated[int, AtLeast(0), AtMost(2**32 - 1)]
"""What every generator takes, NumPy's being the narrowest."""

Marks = tuple[Any, ...]


class Unfit(ValueError):
    """A value does not fit its annotation; `need` and `example` may say it better than the type."""

    def __init__(self, need: str = "", example: str = "") -> None:
        super().__init__(need)
        self.need, self.example = need, example


ALIASES = {
    "lr": "train.lr",
    "epochs": "train.epochs",
    "max_steps": "train.max_steps",
    "batch_size": "train.batch_size",
    "max_length": "data.max_length",
    "max_new_tokens": "sampling.max_new_tokens",
    "temperature": "sampling.temperature",
}


@dataclass(frozen=True)
class Knob:
    """A key that a user can set."""

    key: str
    """Full dotted name, as in `train.lr`."""

    type: Any
    """The annotation, marks included."""

    default: Any
    owner: type[Any]
    """The config class that has the field."""

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]


def unmark(annotation: Any) -> tuple[Any, Marks]:
    """Split `Annotated[float, Above(0)]` into `float` and its marks."""
    if get_origin(annotation) is Annotated:
        bare, *marks = get_args(annotation)
        return bare, tuple(marks)
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


def knobs(config: type[Any]) -> dict[str, Knob]:
    """Every key of a command by its full name, the root's own first."""
    found = list(_knobs(config(), ""))
    found.sort(key=lambda knob: "." in knob.key)
    return {knob.key: knob for knob in found}


def _knobs(node: Any, prefix: str) -> Iterator[Knob]:
    for name, annotation in field_types(type(node)).items():
        key, value = prefix + name, getattr(node, name)
        if is_group(annotation):
            yield from _knobs(value, f"{key}.")
        else:
            yield Knob(key, annotation, value, type(node))


def key_type(config: type[Any], key: str) -> Any:
    """The annotation of a key, also of one below a mapping; None for an unknown key."""
    inner, known = groups(config), knobs(config)
    if key in inner:
        return inner[key]
    if key in known:
        return known[key].type
    parent = key.rpartition(".")[0]
    outer = unmark(key_type(config, parent))[0] if parent and parent not in inner else None
    if get_origin(outer) is dict:
        return get_args(outer)[1]
    return Any if outer is Any else None


def machinery(config: type[Any]) -> set[str]:
    """The keys of a command that do not change its result."""
    return {knob.key for knob in knobs(config).values() if Machinery() in unmark(knob.type)[1]}


def aliases(config: type[Any]) -> dict[str, str]:
    """The short names that mean something to a command and what they stand for."""
    known = knobs(config)
    return {short: full for short, full in ALIASES.items() if full in known and short not in known}


def need(annotation: Any) -> str:
    """What a value of this type must be, in words: `a number > 0`."""
    bare, marks = unmark(annotation)
    if is_union(bare):
        return _either(list(get_args(bare)))
    origin, parts = get_origin(bare), get_args(bare)
    if origin is Literal:
        return "one of " * (len(parts) > 1) + ", ".join(show(part) for part in parts)
    if origin is list:
        return "a list" if parts[0] is Any else f"a list, each item {need(parts[0])}"
    if origin is dict:
        return "keys with values" if parts[1] is Any else f"keys, each with {need(parts[1])}"
    return " ".join([_WORDS.get(bare, "keys below it"), *bounds(marks)])


def _either(parts: list[Any]) -> str:
    """The parts of a union; one of a few, or a list of them, names the few once."""
    lists = [part for part in parts if get_origin(part) is list and get_args(part)[0] in parts]
    found = [need(part) for part in parts if part not in lists]
    return " or ".join([*found, *("a list of these" for _ in lists)])


_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Any: "a value",
    types.NoneType: "null",
}


def bounds(marks: Marks) -> list[str]:
    """The range in symbols, for a message: `["> 0", "and <= 1"]`."""
    signs = {Above: ">", AtLeast: ">=", Below: "<", AtMost: "<="}
    found = [f"{signs[type(mark)]} {show(mark.bound)}" for mark in marks if type(mark) in signs]
    return [text if i == 0 else f"and {text}" for i, text in enumerate(found)]


def show(value: Any) -> str:
    """A value as it is typed after `key=`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return re.sub(r"e([-+])0*(\d)", r"e\1\2", repr(value)).replace("e+", "e")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {show(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(show(item) for item in value) + "]"
    text = str(value)
    return text if not isinstance(value, str) or re.fullmatch(_PLAIN, text) else repr(text)


# Text that needs no quotes and cannot be taken for a number.
_PLAIN = r"(?![-+.\d][\d.eE+_-]*$)[\w./~@:+-]+"

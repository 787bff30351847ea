"""Values: how they are written and described, and whether one fits an annotation."""

import math
import operator
import re
import types
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from rlhf_cli.config import paths
from rlhf_cli.config.schema import (
    Constraints,
    Ge,
    Gt,
    InvalidValue,
    Le,
    Lt,
    OutputPath,
    is_group,
    is_union,
    split_annotated,
    unused_options,
)
from rlhf_cli.config.suggest import nearest


def describe_type(annotation: Any) -> str:
    """What a value of this type must be, in words: `a number > 0`."""
    bare, constraints = split_annotated(annotation)
    if is_union(bare):
        return _either(list(get_args(bare)))
    origin, parts = get_origin(bare), get_args(bare)
    if origin is Literal:
        return "one of " * (len(parts) > 1) + ", ".join(format_value(part) for part in parts)
    if origin is list:
        return "a list" if parts[0] is Any else f"a list, each item {describe_type(parts[0])}"
    if origin is dict:
        known = parts[1] is not Any
        return f"keys, each with {describe_type(parts[1])}" if known else "keys with values"
    return " ".join([_WORDS.get(bare, "keys below it"), *describe_range(constraints)])


def _either(parts: list[Any]) -> str:
    """The parts of a union; one of a few, or a list of them, names the few once."""
    lists = [part for part in parts if get_origin(part) is list and get_args(part)[0] in parts]
    found = [describe_type(part) for part in parts if part not in lists]
    return " or ".join([*found, *("a list of these" for _ in lists)])


_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Any: "a value",
    types.NoneType: "null",
}

_BOUNDS = {
    Gt: ("gt", ">", operator.gt),
    Ge: ("ge", ">=", operator.ge),
    Lt: ("lt", "<", operator.lt),
    Le: ("le", "<=", operator.le),
}
"""Class of annotated-types -> its attribute, its sign, and what a value must be to the bound."""


def describe_range(constraints: Constraints) -> list[str]:
    """The range in symbols, for a message: `["> 0", "and <= 1"]`."""
    found = [f"{sign} {format_value(bound)}" for sign, bound, _ in _bounds(constraints)]
    return [text if i == 0 else f"and {text}" for i, text in enumerate(found)]


def _bounds(constraints: Constraints) -> list[tuple[str, Any, Any]]:
    known = [(item, *_BOUNDS[type(item)]) for item in constraints if type(item) in _BOUNDS]
    return [(sign, getattr(item, name), holds) for item, name, sign, holds in known]


def format_value(value: Any) -> str:
    """A value as it is typed after `key=`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return re.sub(r"e([-+])0*(\d)", r"e\1\2", repr(value)).replace("e+", "e")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {format_value(v)}" for key, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(format_value(item) for item in value) + "]"
    text = str(value)
    return text if not isinstance(value, str) or re.fullmatch(_PLAIN, text) else repr(text)


# Text that needs no quotes and cannot be taken for a number.
_PLAIN = r"(?![-+.\d][\d.eE+_-]*$)[\w./~@:+-]+"


def member(union: Any, value: Any) -> Any:
    """The part of a union that has the value's shape."""
    shape: Any = type(value)
    for part in get_args(union):
        bare, _ = split_annotated(part)
        if (get_origin(bare) or bare) is shape or (bare is float and shape is int):
            return part
        if is_group(bare) and shape is dict:
            return part
        if get_origin(bare) is Literal and value in get_args(bare):
            return part
    raise InvalidValue


def check_choice(choices: tuple[Any, ...], value: Any) -> Any:
    """The value, if it is one of a few."""
    if any(value == known and type(value) is type(known) for known in choices):
        return value
    raise InvalidValue(example=nearest(str(value), map(str, choices)))


def check_scalar(kind: Any, constraints: Constraints, value: Any) -> Any:
    """A number, text or switch of the right type and range; a path that can exist."""
    if kind is Any:
        return value
    if kind is float and type(value) is int:
        value = _as_float(value)
    if type(value) is not kind:
        raise InvalidValue
    if kind in (int, float):
        _check_range(value, constraints)
    if kind is str:
        return _check_text(value, constraints)
    return value


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise InvalidValue from None


def _check_range(value: float, constraints: Constraints) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidValue
    if not all(holds(value, bound) for _, bound, holds in _bounds(constraints)):
        raise InvalidValue


def _check_text(value: str, constraints: Constraints) -> str:
    if "\0" in value:
        raise InvalidValue("need text without a zero byte")
    kind = paths.input_kind(constraints)
    if kind:
        return paths.locate(kind, value)
    writes = any(isinstance(item, OutputPath) for item in constraints)
    return paths.expand(value) if writes else value


def example(kind: Any, value: Any, default: Any) -> str:
    """What to type instead: the value itself in the right form, else the default."""
    bare, constraints = split_annotated(kind)
    if is_union(bare):
        numbers = (part for part in get_args(bare) if split_annotated(part)[0] in (int, float))
        return next((example(n, value, default) for n in numbers), format_value(default))
    if get_origin(bare) is list and not isinstance(value, list | dict):
        return format_value([value])
    if get_origin(bare) is dict:
        return "{name: value}"
    if bare is bool and str(value).lower() in _SWITCHES:
        return _SWITCHES[str(value).lower()]
    if bare is str and isinstance(value, bool | int | float):
        return repr(format_value(value))
    if bare in (int, float) and isinstance(value, str | float):
        return _as_number(bare, constraints, value) or format_value(default)
    return format_value(default) if default not in ("", None) else ""


_SWITCHES = {
    **dict.fromkeys(("yes", "y", "on", "1", "1.0", "true", "t"), "true"),
    **dict.fromkeys(("no", "n", "off", "0", "0.0", "false", "f", "none", "null"), "false"),
}


def _as_number(kind: Any, constraints: Constraints, value: str | float) -> str:
    try:
        number = float(value.strip()) if isinstance(value, str) else value
        if kind is int and number != int(number):
            return ""
        _check_range(number, constraints)
    except (ValueError, OverflowError):
        return ""
    return format_value(kind(number))


def unused_problems(cfg: Any, used: Mapping[str, bool], reader: str) -> list[str]:
    """Say of each option in `unused_options` that only `reader` reads it, one line each."""
    return [
        f"{name}: given, but only {reader} reads it. Try {name}={format_value(default)}"
        for name, default in unused_options(cfg, used).items()
    ]

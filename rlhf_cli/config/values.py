"""Whether one value fits one annotation, and what could be typed instead."""

import math
import operator
from typing import Any, Literal, get_args, get_origin

from rlhf_cli.config import paths
from rlhf_cli.config.nearest import nearest
from rlhf_cli.config.schema import (
    Above,
    AtLeast,
    AtMost,
    Below,
    Marks,
    OutputPath,
    Unfit,
    is_group,
    is_union,
    show,
    unmark,
)


def member(union: Any, value: Any) -> Any:
    """The part of a union that has the value's shape."""
    shape: Any = type(value)
    for part in get_args(union):
        bare, _ = unmark(part)
        if (get_origin(bare) or bare) is shape or (bare is float and shape is int):
            return part
        if is_group(bare) and shape is dict:
            return part
        if get_origin(bare) is Literal and value in get_args(bare):
            return part
    raise Unfit


def choice(choices: tuple[Any, ...], value: Any) -> Any:
    """The value, if it is one of a few."""
    if any(value == known and type(value) is type(known) for known in choices):
        return value
    raise Unfit(example=nearest(str(value), map(str, choices)))


def scalar(kind: Any, marks: Marks, value: Any) -> Any:
    """A number, text or switch of the right type and range; a path that can be there."""
    if kind is Any:
        return value
    if kind is float and type(value) is int:
        value = _as_float(value)
    if type(value) is not kind:
        raise Unfit
    if kind in (int, float):
        _in_range(value, marks)
    if kind is str:
        return _text(value, marks)
    return value


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise Unfit from None


def _in_range(value: float, marks: Marks) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise Unfit
    for mark in marks:
        if type(mark) in _OUTSIDE and _OUTSIDE[type(mark)](value, mark.bound):
            raise Unfit


_OUTSIDE = {Above: operator.le, AtLeast: operator.lt, Below: operator.ge, AtMost: operator.gt}


def _text(value: str, marks: Marks) -> str:
    mark = paths.input_mark(marks)
    if "\0" in value:
        raise Unfit("need text without a zero byte")
    if mark:
        return paths.locate(mark, value)
    return paths.expand(value) if any(isinstance(mark, OutputPath) for mark in marks) else value


def example(kind: Any, value: Any, default: Any) -> str:
    """Something to type instead: the value itself in the right form, else the default."""
    bare, marks = unmark(kind)
    if is_union(bare):
        numbers = (part for part in get_args(bare) if unmark(part)[0] in (int, float))
        return next((example(n, value, default) for n in numbers), show(default))
    if get_origin(bare) is list and not isinstance(value, list | dict):
        return show([value])
    if get_origin(bare) is dict:
        return "{name: value}"
    if bare is bool and str(value).lower() in _SWITCHES:
        return _SWITCHES[str(value).lower()]
    if bare is str and isinstance(value, bool | int | float):
        return repr(show(value))
    if bare in (int, float) and isinstance(value, str | float):
        return _as_number(bare, marks, value) or show(default)
    return show(default) if default not in ("", None) else ""


_SWITCHES = {
    **dict.fromkeys(("yes", "y", "on", "1", "1.0", "true", "t"), "true"),
    **dict.fromkeys(("no", "n", "off", "0", "0.0", "false", "f", "none", "null"), "false"),
}


def _as_number(kind: Any, marks: Marks, value: str | float) -> str:
    try:
        number = float(value.strip()) if isinstance(value, str) else value
        if kind is int and number != int(number):
            return ""
        _in_range(number, marks)
    except (ValueError, OverflowError):
        return ""
    return show(kind(number))

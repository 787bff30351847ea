"""What a configuration names to be read: rows, models, files and functions."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin

from rlhf_cli.config.paths import InputMark, input_mark
from rlhf_cli.config.schema import field_types, is_group, knobs, unmark


@dataclass(frozen=True)
class Input:
    """One name of something to read.

    Attributes:
        key: dotted, with an index in a list, as in `data.path[1].path`.
        value: a path, a hub id, or a word such as `tiny`.
        mark: what it names.
        beside: the keys of the group that it stands in, such as `data_dir` beside `data.path`.
    """

    key: str
    value: str
    mark: InputMark
    beside: dict[str, Any] = field(default_factory=dict)


def named_inputs(values: dict[str, Any], config: type[Any]) -> Iterator[Input]:
    """Every input in nested values.

    Args:
        values: keys of a config class with plain values; keys may be missing.
        config: the class.
    """
    for knob in knobs(config).values():
        value: Any = values
        beside: dict[str, Any] = {}
        for part in knob.key.split("."):
            beside = value if isinstance(value, dict) else {}
            value = beside.get(part)
        bare, marks = unmark(knob.type)
        mark = input_mark(marks)
        if mark:
            yield from _named(knob.key, value, mark, beside)
        elif get_origin(bare) is list and is_group(get_args(bare)[0]):
            yield from _in_groups(knob.key, value, field_types(get_args(bare)[0]))


def _in_groups(key: str, value: Any, kinds: dict[str, Any]) -> Iterator[Input]:
    """The same of each item of a list, whose keys are of these kinds."""
    for i, item in enumerate(value if isinstance(value, list) else []):
        for name, given in item.items() if isinstance(item, dict) else ():
            mark = input_mark(unmark(kinds.get(name, Any))[1])
            if mark:
                yield from _named(f"{key}[{i}].{name}", given, mark, item)


def _named(key: str, value: Any, mark: InputMark, beside: dict[str, Any]) -> Iterator[Input]:
    """One path, several, or sources with a `path` each, whose own keys count before others."""
    if isinstance(value, str):
        yield Input(key, value, mark, beside)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _named(f"{key}[{i}]", item, mark, beside)
    elif isinstance(value, dict) and "path" in value:
        own = {name: given for name, given in value.items() if given}
        yield from _named(f"{key}.path", value["path"], mark, {**beside, **own})

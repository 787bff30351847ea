"""`data.columns`: our names for a file's columns, and texts made of several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any

from rlhf_cli.data.records.adapters import SHAPE_COLUMNS
from rlhf_cli.data.records.types import COLUMNS
from rlhf_cli.data.report import Malformed
from rlhf_cli.data.sources.base import show_value
from rlhf_cli.errors import ConfigError


@dataclass(frozen=True)
class ColumnTemplate:
    """Text with the values of columns in it: literal text and a column's name in turn."""

    parts: tuple[tuple[str, str | None], ...]

    def fill(self, columns: Mapping[str, Any]) -> str:
        """The text of one row.

        Raises:
            Malformed: a column is missing, or is neither text nor a number.
        """
        text = ""
        for literal, name in self.parts:
            text += literal
            if name is not None:
                text += _as_text(name, look_up(columns, name))
        return text

    @property
    def names(self) -> Iterable[str]:
        """The columns that are read."""
        return (name for _, name in self.parts if name is not None)


class Naming:
    """Gives a row's columns our names.

    Args:
        columns: ours -> the file's name, or a text with names in braces.

    Raises:
        ConfigError: a name is none of ours, or a text has wrong braces.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        _require_known(columns)
        self.columns = {ours: _template(ours, theirs) for ours, theirs in columns.items()}

    @property
    def reads(self) -> dict[str, set[str]]:
        """Our name -> the columns of the file that it is made of."""
        return {
            ours: {name.partition(".")[0] for name in template.names} | set(template.names)
            for ours, template in self.columns.items()
        }

    def rename(self, columns: dict[str, Any]) -> dict[str, Any]:
        """The columns under our names.

        Raises:
            Malformed: a column that is to be read is missing.
        """
        if not self.columns:
            return columns
        rest = {name: value for name, value in columns.items() if name not in self.columns}
        return {**rest, **{ours: _value(part, columns) for ours, part in self.columns.items()}}


def look_up(columns: Mapping[str, Any], name: str) -> Any:
    """A column by its name; `meta.title` is also the `title` in the column `meta`.

    Raises:
        Malformed: there is none.
    """
    if name in columns:
        return columns[name]
    value: Any = columns
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            found = ", ".join(columns) or "none"
            raise Malformed(f"no column {name} (data.columns); found {found}")
        value = value[part]
    return value


def _value(template: ColumnTemplate, columns: Mapping[str, Any]) -> Any:
    if template.parts[0][0] or len(template.parts) > 1 or template.parts[0][1] is None:
        return template.fill(columns)
    return look_up(columns, template.parts[0][1])  # a column as it is, of any type


def _template(ours: str, theirs: str) -> ColumnTemplate:
    if "{" not in theirs and "}" not in theirs:
        return ColumnTemplate((("", theirs),))
    try:
        parts = list(Formatter().parse(theirs))
    except ValueError as error:
        raise _wrong(ours, theirs, str(error)) from None
    for _, name, spec, conversion in parts:
        if name == "" or spec or conversion:
            raise _wrong(ours, theirs, "braces without a plain column name")
    return ColumnTemplate(tuple((literal, name) for literal, name, _, _ in parts))


def _wrong(ours: str, theirs: str, what: str) -> ConfigError:
    return ConfigError(
        f"data.columns.{ours}: got {show_value(theirs)}: {what}; need names of columns in braces, "
        'as in "Question: {question}", and {{ }} for braces themselves'
    )


def _as_text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Malformed(f"{name}: got {show_value(value)}; need text or a number (data.columns)")
    return show_value(value)


def _require_known(columns: Mapping[str, str]) -> None:
    for name in columns:
        if name not in COLUMNS + SHAPE_COLUMNS:
            raise ConfigError(
                f"data.columns.{name}: no such column; need one of {', '.join(COLUMNS)}, as in "
                "data.columns={prompt: question}"
            )

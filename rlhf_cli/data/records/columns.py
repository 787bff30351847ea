"""Column mapping of `data.columns`: our names for a file's columns, and texts made of several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any

from rlhf_cli.data.records.adapters import LAYOUT_COLUMNS
from rlhf_cli.data.records.types import COLUMNS
from rlhf_cli.data.report import MalformedRow
from rlhf_cli.data.sources.base import describe_value
from rlhf_cli.errors import ConfigError


@dataclass(frozen=True)
class ColumnTemplate:
    """Text with column values in it: pairs of literal text and a column name or None."""

    parts: tuple[tuple[str, str | None], ...]

    def fill(self, columns: Mapping[str, Any]) -> str:
        """Return the text for one row.

        Raises:
            MalformedRow: a column is missing, or is neither text nor a number.
        """
        text = ""
        for literal, name in self.parts:
            text += literal
            if name is not None:
                text += _to_text(name, get_column(columns, name))
        return text

    @property
    def names(self) -> Iterable[str]:
        """Names of the columns that are read."""
        return (name for _, name in self.parts if name is not None)


class ColumnMapping:
    """Renames a row's columns to ours.

    Args:
        columns: our name -> the name in the file, or a text with names in braces.

    Raises:
        ConfigError: a name is not one of our columns, or the braces of a text are wrong.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        _require_known(columns)
        self.templates = {ours: _parse_template(ours, theirs) for ours, theirs in columns.items()}

    @property
    def inputs(self) -> dict[str, set[str]]:
        """Our name -> the columns of the file it is made of."""
        return {
            ours: {name.partition(".")[0] for name in template.names} | set(template.names)
            for ours, template in self.templates.items()
        }

    def rename(self, columns: dict[str, Any]) -> dict[str, Any]:
        """Return the columns under our names.

        Raises:
            MalformedRow: a mapped column is missing.
        """
        if not self.templates:
            return columns
        others = {name: value for name, value in columns.items() if name not in self.templates}
        mapped = {ours: _value(template, columns) for ours, template in self.templates.items()}
        return {**others, **mapped}


def get_column(columns: Mapping[str, Any], name: str) -> Any:
    """Return a column by its name; `meta.title` also finds the key `title` of the column `meta`.

    Raises:
        MalformedRow: there is no such column.
    """
    if name in columns:
        return columns[name]
    value: Any = columns
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            found = ", ".join(columns) or "none"
            raise MalformedRow(f"no column {name} (data.columns); found {found}")
        value = value[part]
    return value


def _value(template: ColumnTemplate, columns: Mapping[str, Any]) -> Any:
    literal, name = template.parts[0]
    if literal or name is None or len(template.parts) > 1:
        return template.fill(columns)
    return get_column(columns, name)  # a single column keeps its type


def _parse_template(ours: str, theirs: str) -> ColumnTemplate:
    if "{" not in theirs and "}" not in theirs:
        return ColumnTemplate((("", theirs),))
    try:
        parts = list(Formatter().parse(theirs))
    except ValueError as error:
        raise _invalid_template(ours, theirs, str(error)) from None
    for _, name, spec, conversion in parts:
        if name == "" or spec or conversion:
            raise _invalid_template(ours, theirs, "braces without a plain column name")
    return ColumnTemplate(tuple((literal, name) for literal, name, _, _ in parts))


def _invalid_template(ours: str, theirs: str, reason: str) -> ConfigError:
    return ConfigError(
        f"data.columns.{ours}: got {describe_value(theirs)}: {reason}; need names of columns in "
        'braces, as in "Question: {question}", and {{ }} for braces themselves'
    )


def _to_text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MalformedRow(
            f"{name}: got {describe_value(value)}; need text or a number (data.columns)"
        )
    return describe_value(value)


def _require_known(columns: Mapping[str, str]) -> None:
    for name in columns:
        if name not in COLUMNS + LAYOUT_COLUMNS:
            raise ConfigError(
                f"data.columns.{name}: no such column; need one of {', '.join(COLUMNS)}, as in "
                "data.columns={prompt: question}"
            )

"""Lists that a file holds as text: JSON in a cell, or what Python prints."""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

from rlhf_cli.data.reading.raw import show_value
from rlhf_cli.data.records.row_errors import Malformed, Refused
from rlhf_cli.data.records.shapes.made import Columns

LISTS = ("messages", "conversations", "responses", "scores")
"""Never text: any cell that begins with a bracket is parsed."""

EITHER = ("prompt", "completion", "chosen", "rejected", "history")
"""Text or messages: a cell is parsed where it begins like a list of messages."""

TEXTS = ("text", "instruction", "input", "output", "system")
"""Always text: one that begins like a list of messages was meant as something else."""

NUMBERS = ("margin", "score")

_MESSAGES = re.compile(
    r"\s*(?:array\(\s*)?\[?\s*\{\s*(?P<quote>[\"'])(?:role|from|content|value)(?P=quote)\s*:"
)
_PAIRS = re.compile(r"\s*\[\s*(?:\[|\]\s*$)")
_BRACKET = re.compile(r"\s*[\[{]")


def read_lists(columns: Columns, *, untyped: bool) -> dict[str, Any]:
    """The row with lists in the place of their text.

    Args:
        columns: under our names.
        untyped: all values are text, as in a `.csv`: an empty cell is none, and numbers are read.

    Raises:
        Malformed: text that begins like a list is none, or a cell for a number holds none.
        Refused: a column of plain text holds a list of messages.
    """
    found = {name: _read(name, value) for name, value in columns.items()}
    return {**found, **_from_cells(found)} if untyped else found


def _read(name: str, value: Any) -> Any:
    if name == "responses" and isinstance(value, list):
        return [_read("completion", item) for item in value]
    if not isinstance(value, str):
        return value
    if name in LISTS and _BRACKET.match(value):
        return _parsed(name, value)
    if name == "responses":
        return value
    if name in EITHER and (_MESSAGES.match(value) or (name == "history" and _PAIRS.match(value))):
        return _parsed(name, value)
    if name in TEXTS and _MESSAGES.match(value):
        raise Refused(
            f"{name}: begins like a list of messages and is read as text; "
            f"data.columns.messages={name} reads the messages"
        )
    return value


def _parsed(name: str, text: str) -> Any:
    """A list as JSON, or as Python prints it.

    Raises:
        Malformed: it is neither.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        got = show_value(text)
        raise Malformed(
            f"{name}: got {got}, which begins like a list; need JSON, or a list as Python prints it"
        ) from None


def _from_cells(columns: Columns) -> dict[str, Any]:
    """Of a row whose values are all text: an empty cell for a list or number is none."""
    named = {name: columns[name] for name in (*LISTS, *NUMBERS) if name in columns}
    cells = {name: value for name, value in named.items() if isinstance(value, str)}
    return {
        name: None if not cell.strip() else _number(name, cell) if name in NUMBERS else cell
        for name, cell in cells.items()
    }


def _number(name: str, cell: str) -> Any:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        raise Malformed(f"{name}: got {show_value(cell)}; need a number") from None

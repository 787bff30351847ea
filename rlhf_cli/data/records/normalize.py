"""Bring the values of a row's columns into our form: lists, messages, ends of responses."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

from rlhf_cli.data.records.responses import HUMAN, MARK
from rlhf_cli.data.report import Malformed, Refused
from rlhf_cli.data.sources.base import show_value

Columns = Mapping[str, Any]


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


SPEAKERS = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


_MESSAGE_COLUMNS = ("messages", "conversations", "prompt", "completion", "chosen", "rejected")


_OURS = (("role", "from"), ("content", "value"))


def read_messages(columns: Columns) -> dict[str, Any]:
    """The row with `role` and `content` in every column that holds messages.

    A single message becomes a list of one; an object of lists, which `datasets` makes of a list of
    objects, becomes the list again.
    """
    found = dict(columns)
    for name in _MESSAGE_COLUMNS:
        if name in found:
            found[name] = as_messages(found[name])
    if isinstance(found.get("responses"), list):
        found["responses"] = [as_messages(item) for item in found["responses"]]
    return found


def as_messages(value: Any) -> Any:
    """A list of messages with `role` and `content`; what is none stays as it is."""
    if isinstance(value, list):
        return [_message(item) for item in value]
    if not isinstance(value, dict):
        return value
    said = _message(value)
    if not {"role", "content"} <= set(said):
        return value
    columns = [said["role"], said["content"]]
    if all(isinstance(column, list) for column in columns) and isinstance(said["role"], list):
        return _rows(value) if len({*map(len, columns)}) == 1 else value
    return [said]


def _rows(table: dict[str, list[Any]]) -> list[Any]:
    rows = zip(*table.values(), strict=False)
    return [_message(dict(zip(table, row, strict=True))) for row in rows]


def _message(item: Any) -> Any:
    """One message: `from` and `value` are read where `role` and `content` are missing or null."""
    if not isinstance(item, dict):
        return item
    said = dict(item)
    for ours, theirs in _OURS:
        if said.get(ours) is None and said.get(theirs) is not None:
            said[ours] = said.pop(theirs)
    if not {"role", "content"} <= set(said):
        return item
    for _, theirs in _OURS:
        if said.get(theirs, "") is None:
            del said[theirs]
    role = said["role"]
    return {**said, "role": SPEAKERS.get(role, role) if isinstance(role, str) else role}


NOTE = "the turns after the assistant's last one were left out of a response"


_RESPONSES = ("chosen", "rejected", "completion")


def end_with_assistant(columns: Columns) -> tuple[dict[str, Any], bool]:
    """The row with each response ended by the assistant's last turn, and whether any was cut."""
    found = dict(columns)
    marked = _has_marks(columns.get("prompt"))
    for name in _RESPONSES:
        if name in found:
            found[name] = _ended(found[name], marked)
    if isinstance(found.get("responses"), list):
        found["responses"] = [_ended(item, marked) for item in found["responses"]]
    return found, found != columns


def _has_marks(prompt: Any) -> bool:
    return isinstance(prompt, str) and prompt.rstrip().endswith(MARK)


def _ended(response: Any, marked: bool) -> Any:
    if isinstance(response, str):
        return _ended_text(response, marked)
    if not isinstance(response, list):
        return response
    roles = [turn.get("role") if isinstance(turn, dict) else None for turn in response]
    if "assistant" not in roles:
        return response
    last = len(roles) - roles[::-1].index("assistant")
    return response[:last]


def _ended_text(response: str, marked: bool) -> str:
    """Text with turn marks, its own or those of the prompt before it."""
    start = response.rfind(MARK)
    if start < 0 and not marked:
        return response
    end = response.find(HUMAN, max(start, 0))
    return response if end < 0 else response[:end]

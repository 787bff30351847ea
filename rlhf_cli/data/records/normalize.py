"""Normalize the values of a row: lists from text, messages from objects, ends of responses."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

from rlhf_cli.data.records.responses import ASSISTANT_MARK, HUMAN_MARK
from rlhf_cli.data.report import MalformedRow, RefusedRow
from rlhf_cli.data.sources.base import describe_value

Columns = Mapping[str, Any]

LIST_COLUMNS = ("messages", "conversations", "responses", "scores")
"""Never text: every cell that begins with a bracket is parsed."""

LIST_OR_TEXT_COLUMNS = ("prompt", "completion", "chosen", "rejected", "history")
"""Text or messages: a cell is parsed if it begins like a list of messages."""

TEXT_COLUMNS = ("text", "instruction", "input", "output", "system")
"""Always text: a cell that begins like a list of messages is refused."""

NUMBER_COLUMNS = ("margin", "score")

TRAILING_TURNS_NOTE = "the turns after the assistant's last one were left out of a response"

SPEAKER_ROLES = {
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
"""Speaker in ShareGPT, LLaMA-Factory and OpenAssistant data -> role of a message."""

_MESSAGES = re.compile(
    r"\s*(?:array\(\s*)?\[?\s*\{\s*(?P<quote>[\"'])(?:role|from|content|value)(?P=quote)\s*:"
)
_PAIRS = re.compile(r"\s*\[\s*(?:\[|\]\s*$)")
_BRACKET = re.compile(r"\s*[\[{]")

_MESSAGE_COLUMNS = ("messages", "conversations", "prompt", "completion", "chosen", "rejected")
_MESSAGE_KEYS = (("role", "from"), ("content", "value"))
"""Our key of a message, and ShareGPT's."""

_RESPONSE_COLUMNS = ("chosen", "rejected", "completion")


def drop_nulls(columns: Columns) -> dict[str, Any]:
    """Remove null columns: merged files have every column in every row."""
    return {name: value for name, value in columns.items() if value is not None}


def parse_list_columns(columns: Columns, *, untyped: bool) -> dict[str, Any]:
    """Parse lists that the file holds as text: JSON, or a printed Python list.

    Args:
        columns: columns under our names.
        untyped: all values are text, as in a `.csv`: numbers are parsed, empty cells become None.

    Raises:
        MalformedRow: a cell begins like a list and is none, or a number cell holds no number.
        RefusedRow: a text column holds a list of messages.
    """
    found = {name: _parse_cell(name, value) for name, value in columns.items()}
    return {**found, **_parse_untyped_cells(found)} if untyped else found


def _parse_cell(name: str, value: Any) -> Any:
    if name == "responses" and isinstance(value, list):
        return [_parse_cell("completion", item) for item in value]
    if not isinstance(value, str):
        return value
    if name in LIST_COLUMNS and _BRACKET.match(value):
        return _parse_list_text(name, value)
    if name in LIST_OR_TEXT_COLUMNS:
        is_list = _MESSAGES.match(value) or (name == "history" and _PAIRS.match(value))
        return _parse_list_text(name, value) if is_list else value
    if name in TEXT_COLUMNS and _MESSAGES.match(value):
        raise RefusedRow(
            f"{name}: begins like a list of messages and is read as text; "
            f"data.columns.messages={name} reads the messages"
        )
    return value


def _parse_list_text(name: str, text: str) -> Any:
    """Parse a list as JSON, or as Python prints it.

    Raises:
        MalformedRow: the text is neither.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unknown escapes
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        got = describe_value(text)
        raise MalformedRow(
            f"{name}: got {got}, which begins like a list; need JSON, or a list as Python prints it"
        ) from None


def _parse_untyped_cells(columns: Columns) -> dict[str, Any]:
    """Parse the list and number cells of a row whose values are all text."""
    names = [name for name in (*LIST_COLUMNS, *NUMBER_COLUMNS) if name in columns]
    cells = {name: columns[name] for name in names if isinstance(columns[name], str)}
    return {
        name: None
        if not cell.strip()
        else _parse_number_cell(name, cell)
        if name in NUMBER_COLUMNS
        else cell
        for name, cell in cells.items()
    }


def _parse_number_cell(name: str, cell: str) -> Any:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        raise MalformedRow(f"{name}: got {describe_value(cell)}; need a number") from None


def normalize_message_columns(columns: Columns) -> dict[str, Any]:
    """Give messages the keys `role` and `content` in every column that holds messages.

    A single message becomes a list of one; an object of lists, which `datasets` makes of a list of
    objects, becomes the list again.
    """
    found = dict(columns)
    for name in _MESSAGE_COLUMNS:
        if name in found:
            found[name] = normalize_messages(found[name])
    if isinstance(found.get("responses"), list):
        found["responses"] = [normalize_messages(item) for item in found["responses"]]
    return found


def normalize_messages(value: Any) -> Any:
    """Return a list of messages with `role` and `content`; other values are unchanged."""
    if isinstance(value, list):
        return [_normalize_message(item) for item in value]
    if not isinstance(value, dict):
        return value
    message = _normalize_message(value)
    if not {"role", "content"} <= set(message):
        return value
    lists = [message["role"], message["content"]]
    if all(isinstance(listed, list) for listed in lists):
        return _table_to_messages(value) if len({*map(len, lists)}) == 1 else value
    return [message]


def _table_to_messages(table: dict[str, list[Any]]) -> list[Any]:
    rows = zip(*table.values(), strict=False)
    return [_normalize_message(dict(zip(table, row, strict=True))) for row in rows]


def _normalize_message(item: Any) -> Any:
    """Rename `from` and `value` to `role` and `content` where these are missing or null."""
    if not isinstance(item, dict):
        return item
    message = dict(item)
    for ours, theirs in _MESSAGE_KEYS:
        if message.get(ours) is None and message.get(theirs) is not None:
            message[ours] = message.pop(theirs)
    if not {"role", "content"} <= set(message):
        return item
    for _, theirs in _MESSAGE_KEYS:
        if message.get(theirs, "") is None:
            del message[theirs]
    role = message["role"]
    return {**message, "role": SPEAKER_ROLES.get(role, role) if isinstance(role, str) else role}


def drop_trailing_turns(columns: Columns) -> tuple[dict[str, Any], bool]:
    """End each response with the assistant's last turn; also return whether any turn was dropped.

    A conversation that the human ends has turns after it.
    """
    found = dict(columns)
    prompt = columns.get("prompt")
    marked = isinstance(prompt, str) and prompt.rstrip().endswith(ASSISTANT_MARK)
    for name in _RESPONSE_COLUMNS:
        if name in found:
            found[name] = _end_with_assistant(found[name], marked)
    if isinstance(found.get("responses"), list):
        found["responses"] = [_end_with_assistant(item, marked) for item in found["responses"]]
    return found, found != columns


def _end_with_assistant(response: Any, marked: bool) -> Any:
    if isinstance(response, str):
        return _end_text_with_assistant(response, marked)
    if not isinstance(response, list):
        return response
    roles = [turn.get("role") if isinstance(turn, dict) else None for turn in response]
    if "assistant" not in roles:
        return response
    return response[: len(roles) - roles[::-1].index("assistant")]


def _end_text_with_assistant(response: str, marked: bool) -> str:
    """Cut text with turn marks, which are its own or (`marked`) those of its prompt."""
    start = response.rfind(ASSISTANT_MARK)
    if start < 0 and not marked:
        return response
    end = response.find(HUMAN_MARK, max(start, 0))
    return response if end < 0 else response[:end]

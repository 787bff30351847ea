"""Definitions of tools, and an assistant's calls of them, in OpenAI's format."""

from __future__ import annotations

import json
from typing import Any

from rlhf_cli.data.reading.raw import show_value
from rlhf_cli.data.records.row_errors import Malformed

EMPTY: tuple[Any, ...] = (None, "", [], {})
"""Values that say nothing: a table gives every message the keys of all messages."""


def tools(name: str, value: Any) -> tuple[Any, ...]:
    """What an assistant may call: a list of definitions, or the same as JSON text.

    Raises:
        Malformed: it is neither.
    """
    if isinstance(value, str) and value.strip():
        value = _json(name, value)
    if value in EMPTY:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise Malformed(f"{name}: got {show_value(value)}; need a list of tool definitions")
    return tuple(_without_nulls(tool) for tool in value)


def calls(name: str, value: Any) -> list[Any]:
    """Calls with their arguments as objects, which OpenAI's format has as JSON text.

    Templates write the arguments as JSON: text would be quoted once more.

    Raises:
        Malformed: a call does not name a function, or its arguments are not JSON.
    """
    if not isinstance(value, list):
        raise Malformed(f"{name}: got {show_value(value)}; need a list of calls")
    return [_call(f"{name}[{i}]", call) for i, call in enumerate(value)]


def _call(name: str, call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Malformed(f"{name}: got {show_value(call)}; need an object with the function's name")
    given = function.get("arguments")
    if isinstance(given, str):
        given = _json(f"{name}.function.arguments", given or "{}")
    named = {**function, "arguments": {} if given is None else given}
    return {**call, "function": named} if "function" in call else named


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Malformed(f"{name}: got {show_value(text)}; need JSON") from None


def _without_nulls(value: Any) -> Any:
    """A definition without the keys that a table has filled with null."""
    if isinstance(value, dict):
        return {key: _without_nulls(v) for key, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value

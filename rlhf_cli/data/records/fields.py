"""Parsers of a row's values: text, messages, tools, numbers and labels."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlhf_cli.data.report import MalformedRow, RefusedRow
from rlhf_cli.data.sources.base import describe_value

EMPTY_VALUES: tuple[Any, ...] = (None, "", [], {})
"""Values that count as missing: tables give every message the keys of all messages."""

MAX_NUMBER = float(np.finfo(np.float32).max)
"""Largest score or margin, because the losses compute in fp32."""

ROLES = ("system", "user", "assistant", "tool")

TOKEN_BREAK = "\ufdd0"
"""A Unicode noncharacter, which no text contains; the tokenizer forms no token across it."""

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Message keys under which data sets and templates keep the assistant's reasoning."""

TRUE_VALUES = (True, 1, "true", "yes", "1", "1.0")
FALSE_VALUES = (False, 0, "false", "no", "0", "0.0")
"""1.0 and 0.0 as well: a `.csv` with a missing label writes the other labels so."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat.

    Attributes:
        role: one of `ROLES`.
        content: text; empty if an assistant only calls tools.
        weight: 0 excludes an assistant message from the loss; else 1.
        extra: all other keys of the message, such as `tool_calls` or `reasoning_content`, which
            are passed to the chat template.
        tools: tool definitions of the chat; on the first message only.
    """

    role: str
    content: str
    weight: int = 1
    extra: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Any, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the message as the JSON object that a data file contains."""
        found = {"role": self.role, "content": self.content, **self.extra}
        if self.weight != 1:
            found["weight"] = self.weight
        return {**found, "tools": list(self.tools)} if self.tools else found


Messages = tuple[Message, ...]
Prompt = str | Messages
Response = str | Messages
"""Text if the prompt is text, messages if the prompt is messages."""


def prompt_to_json(prompt: Prompt) -> str | list[dict[str, Any]]:
    """Return a prompt as a data file contains it: text, or a list of objects."""
    return prompt if isinstance(prompt, str) else [message.to_dict() for message in prompt]


def parse_text(name: str, value: Any) -> str:
    """Require text that UTF-8 can encode."""
    if not isinstance(value, str):
        raise MalformedRow(f"{name}: got {describe_value(value)}; need text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise MalformedRow(f"{name}: got half a surrogate pair ({half}); need text") from None
    if TOKEN_BREAK in value:
        raise MalformedRow(f"{name}: got U+FDD0, which is no character of Unicode; need text")
    return value


def parse_list(name: str, value: Any) -> list[Any]:
    """Require a list with at least one item."""
    if not isinstance(value, list) or not value:
        raise MalformedRow(
            f"{name}: got {describe_value(value)}; need a list with at least one item"
        )
    return value


def parse_messages(name: str, value: Any) -> Messages:
    """Parse a list of at least one message."""
    return tuple(
        _parse_message(f"{name}[{i}]", item) for i, item in enumerate(parse_list(name, value))
    )


def _parse_message(name: str, value: Any) -> Message:
    if not isinstance(value, dict) or "role" not in value:
        raise _no_role_and_content(name, value)
    role = "system" if value["role"] == "developer" else value["role"]
    if role not in ROLES:
        raise MalformedRow(
            f"{name}.role: got {describe_value(role)}; need one of {', '.join(ROLES)}"
        )
    known = ("role", "content", "weight", "tools")
    extra = {key: v for key, v in value.items() if key not in known and v not in EMPTY_VALUES}
    parse_text(name, json.dumps(extra, ensure_ascii=False, default=str))  # UTF-8 can encode it
    if "tool_calls" in extra:
        extra["tool_calls"] = parse_tool_calls(f"{name}.tool_calls", extra["tool_calls"])
    if value.get("content") is None and "tool_calls" in extra:
        content = ""
    elif "content" in value:
        content = _parse_content(f"{name}.content", value["content"])
    else:
        raise _no_role_and_content(name, value)
    weight = _parse_weight(f"{name}.weight", value.get("weight"))
    return Message(role, content, weight, extra, parse_tools(f"{name}.tools", value.get("tools")))


def _no_role_and_content(name: str, value: Any) -> MalformedRow:
    got = describe_value(value)
    return MalformedRow(f"{name}: got {got}; need an object with role and content")


def _parse_weight(name: str, value: Any) -> int:
    """Parse the message weight of OpenAI's and Mistral's formats; 0 is not trained."""
    if value is None:
        return 1
    if isinstance(value, bool) or value not in (0, 1):
        raise MalformedRow(
            f"{name}: got {describe_value(value)}; need 0 (not trained) or 1 (trained)"
        )
    return int(value)


def _parse_content(name: str, value: Any) -> str:
    """Parse text, or the list of text parts that OpenAI's format allows."""
    if not isinstance(value, list):
        return parse_text(name, value)
    for i, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text":
            raise MalformedRow(f"{name}[{i}]: got {describe_value(part)}; need a part of type text")
    return "".join(
        parse_text(f"{name}[{i}].text", part.get("text")) for i, part in enumerate(value)
    )


def parse_tools(name: str, value: Any) -> tuple[Any, ...]:
    """Parse tool definitions: a list of objects, or the same as JSON text.

    Raises:
        MalformedRow: the value is neither.
    """
    if isinstance(value, str) and value.strip():
        value = _parse_json(name, value)
    if value in EMPTY_VALUES:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise MalformedRow(f"{name}: got {describe_value(value)}; need a list of tool definitions")
    return tuple(_drop_nulls(tool) for tool in value)


def parse_tool_calls(name: str, value: Any) -> list[Any]:
    """Parse tool calls; arguments become objects, which OpenAI's format has as JSON text.

    Chat templates write the arguments as JSON, and would quote text a second time.

    Raises:
        MalformedRow: a call does not name a function, or its arguments are not JSON.
    """
    if not isinstance(value, list):
        raise MalformedRow(f"{name}: got {describe_value(value)}; need a list of calls")
    return [_parse_tool_call(f"{name}[{i}]", call) for i, call in enumerate(value)]


def _parse_tool_call(name: str, call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise MalformedRow(
            f"{name}: got {describe_value(call)}; need an object with the function's name"
        )
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _parse_json(f"{name}.function.arguments", arguments or "{}")
    parsed = {**function, "arguments": {} if arguments is None else arguments}
    return {**call, "function": parsed} if "function" in call else parsed


def _parse_json(name: str, value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise MalformedRow(f"{name}: got {describe_value(value)}; need JSON") from None


def _drop_nulls(value: Any) -> Any:
    """Remove the null keys that a table adds to tool definitions."""
    if isinstance(value, dict):
        return {key: _drop_nulls(v) for key, v in value.items() if v is not None}
    return [_drop_nulls(v) for v in value] if isinstance(value, list) else value


def parse_prompt(name: str, value: Any) -> Prompt:
    """Parse text, or a list of messages."""
    if isinstance(value, list):
        return parse_messages(name, value)
    if not isinstance(value, str):
        raise MalformedRow(f"{name}: got {describe_value(value)}; need text or a list of messages")
    return parse_text(name, value)


def parse_response(name: str, value: Any, given: Prompt) -> Response:
    """Parse a response in the form of its prompt; text after messages is the assistant's.

    Args:
        name: column name, for messages to the user.
        value: value of the column.
        given: prompt of the response.
    """
    if isinstance(given, str):
        return _require_not_blank(parse_text(name, value))
    if not isinstance(value, list):
        return (Message("assistant", _require_not_blank(parse_text(name, value))),)
    return require_assistant_last(name, parse_messages(name, value))


def require_assistant_last(name: str, turns: Messages) -> Messages:
    """Require messages that end with an assistant message."""
    if turns[-1].role != "assistant":
        raise MalformedRow(
            f"{name}: the last message is the {turns[-1].role}'s; need the assistant's"
        )
    return require_assistant_message(turns)


def require_assistant_message(turns: Messages) -> Messages:
    """Require messages with at least one assistant message, none of which is blank."""
    spoken = [turn for turn in turns if turn.role == "assistant"]
    if not spoken:
        raise RefusedRow("no assistant message")
    for turn in spoken:
        if not {"tool_calls", *REASONING_KEYS} & {*turn.extra}:
            _require_not_blank(turn.content)
    return turns


def _require_not_blank(content: str) -> str:
    if not content.strip():
        raise RefusedRow("empty response")
    return content


def parse_number(name: str, value: Any) -> float:
    """Require a finite number that fp32 can represent; booleans are not numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MalformedRow(f"{name}: got {describe_value(value)}; need a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise MalformedRow(f"{name}: got {describe_value(value)}; need a finite number")
    if abs(found) > MAX_NUMBER:
        raise MalformedRow(
            f"{name}: got {describe_value(value)}; need a number up to {MAX_NUMBER:.1e} (fp32)"
        )
    return found


def parse_bool(name: str, value: Any) -> bool:
    """Parse one of `TRUE_VALUES` or `FALSE_VALUES`, ignoring case and surrounding spaces."""
    plain = value.strip().lower() if isinstance(value, str) else value
    if isinstance(plain, bool | int | float | str) and plain in (*TRUE_VALUES, *FALSE_VALUES):
        return plain in TRUE_VALUES
    raise MalformedRow(
        f"{name}: got {describe_value(value)}; need true or false, yes or no, 1 or 0"
    )

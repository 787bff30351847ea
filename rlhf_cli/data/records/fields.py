"""Typed reading of a row's values: what comes out can be trusted, what cannot is malformed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlhf_cli.data.report import Malformed, Refused
from rlhf_cli.data.sources.base import show_value

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


LARGEST = float(np.finfo(np.float32).max)
"""Scores are trained on in fp32."""


ROLES = ("system", "user", "assistant", "tool")


BREAK = "\ufdd0"
"""A noncharacter of Unicode, which no text holds: the tokenizer lets no token reach over it."""


REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys under which sets and templates keep what an assistant thinks before it answers."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat.

    Attributes:
        role: one of `ROLES`.
        content: its text; empty where an assistant only calls tools.
        weight: 0 keeps an assistant's message as context that is not trained; else 1.
        extra: every other key of the message, such as `tool_calls` or `reasoning_content`; given to
            the chat template as it is.
        tools: what the assistant may call in this chat; on the first message.
    """

    role: str
    content: str
    weight: int = 1
    extra: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Any, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The message as a JSON object, as a file would have it."""
        found = {"role": self.role, "content": self.content, **self.extra}
        if self.weight != 1:
            found["weight"] = self.weight
        return {**found, "tools": list(self.tools)} if self.tools else found


Messages = tuple[Message, ...]


Prompt = str | Messages


Response = str | Messages
"""Text where the prompt is text, messages where it is messages."""


def to_json(prompt: Prompt) -> str | list[dict[str, Any]]:
    """A prompt as a file would have it: text, or a list of objects."""
    return prompt if isinstance(prompt, str) else [message.to_dict() for message in prompt]


def text(name: str, value: Any) -> str:
    """Text that can be written in UTF-8."""
    if not isinstance(value, str):
        raise Malformed(f"{name}: got {show_value(value)}; need text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise Malformed(f"{name}: got half a surrogate pair ({half}); need text") from None
    if BREAK in value:
        raise Malformed(f"{name}: got U+FDD0, which is no character of Unicode; need text")
    return value


def messages(name: str, value: Any) -> Messages:
    """A list of messages, at least one."""
    return tuple(_message(f"{name}[{i}]", item) for i, item in enumerate(some(name, value)))


def some(name: str, value: Any) -> list[Any]:
    """A list with at least one item."""
    if not isinstance(value, list) or not value:
        raise Malformed(f"{name}: got {show_value(value)}; need a list with at least one item")
    return value


def _message(name: str, value: Any) -> Message:
    if not isinstance(value, dict) or "role" not in value:
        raise Malformed(f"{name}: got {show_value(value)}; need an object with role and content")
    role = "system" if value["role"] == "developer" else value["role"]
    if role not in ROLES:
        raise Malformed(f"{name}.role: got {show_value(role)}; need one of {', '.join(ROLES)}")
    own = ("role", "content", "weight", "tools")
    extra = {key: v for key, v in value.items() if key not in own and v not in EMPTY}
    text(name, json.dumps(extra, ensure_ascii=False, default=str))  # it can be written in UTF-8
    if "tool_calls" in extra:
        extra["tool_calls"] = calls(f"{name}.tool_calls", extra["tool_calls"])
    if value.get("content") is None and "tool_calls" in extra:
        content = ""
    elif "content" in value:
        content = _content(f"{name}.content", value["content"])
    else:
        raise Malformed(f"{name}: got {show_value(value)}; need an object with role and content")
    weight = _weight(f"{name}.weight", value.get("weight"))
    return Message(role, content, weight, extra, tools(f"{name}.tools", value.get("tools")))


def _weight(name: str, value: Any) -> int:
    """OpenAI's and Mistral's mark of a message that is not to be learned."""
    if value is None:
        return 1
    if isinstance(value, bool) or value not in (0, 1):
        raise Malformed(f"{name}: got {show_value(value)}; need 0 (not trained) or 1 (trained)")
    return int(value)


def _content(name: str, value: Any) -> str:
    """Text, or the list of text parts that OpenAI's format allows."""
    if not isinstance(value, list):
        return text(name, value)
    for i, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text":
            raise Malformed(f"{name}[{i}]: got {show_value(part)}; need a part of type text")
    return "".join(text(f"{name}[{i}].text", part.get("text")) for i, part in enumerate(value))


def prompt(name: str, value: Any) -> Prompt:
    """Text, or a list of messages."""
    if isinstance(value, list):
        return messages(name, value)
    if not isinstance(value, str):
        raise Malformed(f"{name}: got {show_value(value)}; need text or a list of messages")
    return text(name, value)


def response(name: str, value: Any, given: Prompt) -> Response:
    """What follows a prompt, in the prompt's own form; text after messages is the assistant's."""
    if isinstance(given, str):
        return _not_blank(text(name, value))
    if not isinstance(value, list):
        return (Message("assistant", _not_blank(text(name, value))),)
    return replies(name, messages(name, value))


def replies(name: str, turns: Messages) -> Messages:
    """Messages that end with the assistant's."""
    if turns[-1].role != "assistant":
        raise Malformed(f"{name}: the last message is the {turns[-1].role}'s; need the assistant's")
    return spoken(turns)


def spoken(turns: Messages) -> Messages:
    """Messages with an assistant's among them, none of those blank."""
    said = [turn for turn in turns if turn.role == "assistant"]
    if not said:
        raise Refused("no assistant message")
    for turn in said:
        if not {"tool_calls", *REASONING} & {*turn.extra}:
            _not_blank(turn.content)
    return turns


def _not_blank(content: str) -> str:
    if not content.strip():
        raise Refused("empty response")
    return content


def number(name: str, value: Any) -> float:
    """A finite number that fp32 can hold; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Malformed(f"{name}: got {show_value(value)}; need a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise Malformed(f"{name}: got {show_value(value)}; need a finite number")
    if abs(found) > LARGEST:
        raise Malformed(
            f"{name}: got {show_value(value)}; need a number up to {LARGEST:.1e} (fp32)"
        )
    return found


def flag(name: str, value: Any) -> bool:
    """True or false, in one of the ways that cannot mean anything else: see `YES` and `NO`."""
    plain = value.strip().lower() if isinstance(value, str) else value
    if isinstance(plain, bool | int | float | str) and plain in (*YES, *NO):
        return plain in YES
    raise Malformed(f"{name}: got {show_value(value)}; need true or false, yes or no, 1 or 0")


YES = (True, 1, "true", "yes", "1", "1.0")


NO = (False, 0, "false", "no", "0", "0.0")
"""A `.csv` with a missing label turns the others into 1.0 and 0.0."""

"""Whether a chat template writes all that messages say: many pass over what they do not know."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from rlhf_cli.data.records.fields import REASONING, Message, Messages
from rlhf_cli.data.report import Refused
from rlhf_cli.data.tokens.chat_template import ChatTemplate

THOUGHT_END = "</think>"
"""Behind a thought that stands in the content itself."""

TRIES = 8
"""Chats in which a key is looked for before it counts as one that the template does not write."""


def compact(text: str) -> str:
    """The text without white space, which templates add and take away."""
    return "".join(text.split())


def writes(text: str, value: str) -> bool:
    """Whether a compact text holds a value, as it stands or as JSON quotes it."""
    return compact(value) in text or compact(json.dumps(value, ensure_ascii=False)[1:-1]) in text


def left_out(message: Message, text: str) -> str:
    """What a trained message says and a compact text does not, in words; empty where nothing is."""
    thoughts = [message.extra[key] for key in REASONING if isinstance(message.extra.get(key), str)]
    if thoughts and not any(writes(text, thought) for thought in thoughts):
        return "the assistant's reasoning"
    if not all(writes(text, value) for value in _values(message.extra.get("tool_calls", []))):
        return "the assistant's tool calls"
    return "" if writes(text, message.content) else f"a part of the {message.role}'s message"


def _values(tool_calls: Any) -> Iterator[str]:
    """Names and arguments of calls, as text."""
    for call in tool_calls:
        function = call.get("function", call)
        yield function["name"]
        yield from _leaves(function["arguments"])


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, int) and not isinstance(value, bool):
        yield str(value)


class MessageChecker:
    """Compares what a template writes with what it was given.

    Args:
        template: of one tokenizer.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self._passed_over: dict[Any, list[int]] = {}
        self._tried: Counter[str] = Counter()
        self._written: set[str] = set()
        self._dropped_thoughts = False

    @property
    def unwritten(self) -> list[str]:
        """What the template did not write of messages that were taken all the same."""
        keys = sorted({*self._tried} - self._written)
        return [*keys, "thoughts of earlier turns"] if self._dropped_thoughts else keys

    def left_out_of_context(self, messages: Iterable[Message], text: str) -> str:
        """What messages say that are not trained and a text does not, in words; or empty.

        Thoughts aside: templates leave those of earlier turns out when a model is asked, too.
        """
        compacted = compact(text)
        for message in messages:
            missing = left_out(message, compacted)
            if missing and message.role == "assistant":
                self._dropped_thoughts = True
                missing = left_out(_without_thoughts(message), compacted)
            if missing:
                return missing
        return ""

    def passed_over(self, messages: Messages, *, generation_prompt: bool) -> list[int]:
        """Indices of messages whose content the template never writes, whatever it is.

        A short text may stand elsewhere by chance, so other contents are tried; once for all chats
        of the same roles and keys.
        """
        shape = (
            generation_prompt,
            *((m.role, bool(m.content), *sorted(m.extra)) for m in messages),
        )
        if shape not in self._passed_over:
            self._passed_over[shape] = self._find_passed_over(messages, generation_prompt)
        return self._passed_over[shape]

    def _find_passed_over(self, messages: Messages, generation_prompt: bool) -> list[int]:
        markers = [f"rlhfmarker{index}x" if m.content else "" for index, m in enumerate(messages)]
        marked = (replace(m, content=mark) for m, mark in zip(messages, markers, strict=True))
        try:
            text = self.template.render(tuple(marked), generation_prompt=generation_prompt)
        except Refused:  # it reads more in the contents than text; they are compared as they are
            return []
        return [index for index, mark in enumerate(markers) if mark not in text]

    def try_keys(self, messages: Messages, text: str, *, generation_prompt: bool) -> None:
        """Find out whether the template writes the messages' further keys.

        Args:
            messages: a chat.
            text: what the template makes of it.
            generation_prompt: whether `text` ends with one.
        """
        keys = {key for message in messages for key in message.extra} - {"tool_calls"}
        for key in [*keys, *(["tools"] if messages[0].tools else [])]:
            if key in self._written or self._tried[key] >= TRIES:
                continue
            self._tried[key] += 1
            without = tuple(_without(message, key) for message in messages)
            try:
                other = self.template.render(without, generation_prompt=generation_prompt)
            except Refused:
                other = ""
            if other != text:
                self._written.add(key)


def _without_thoughts(message: Message) -> Message:
    extra = {key: value for key, value in message.extra.items() if key not in REASONING}
    return replace(message, content=message.content.rpartition(THOUGHT_END)[2], extra=extra)


def _without(message: Message, key: str) -> Message:
    if key == "tools":
        return replace(message, tools=())
    return replace(message, extra={k: v for k, v in message.extra.items() if k != key})

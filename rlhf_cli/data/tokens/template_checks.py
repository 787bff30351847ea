"""Checks that a chat template renders all parts of messages: many ignore keys they do not know."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from rlhf_cli.data.records.fields import REASONING_KEYS, Message, Messages
from rlhf_cli.data.report import RefusedRow
from rlhf_cli.data.tokens.chat_template import ChatTemplate

THOUGHT_END = "</think>"
"""End of reasoning that is part of a message's content."""

MAX_KEY_TRIALS = 8
"""Number of chats in which a key is looked for before it counts as not rendered."""


def remove_whitespace(text: str) -> str:
    """Remove all white space, which templates add and strip."""
    return "".join(text.split())


def contains(text: str, value: str) -> bool:
    """Whether a text without white space contains a value, as it is or as JSON quotes it."""
    quoted = json.dumps(value, ensure_ascii=False)[1:-1]
    return remove_whitespace(value) in text or remove_whitespace(quoted) in text


def find_missing_part(message: Message, text: str) -> str:
    """Name the part of a message that a text without white space lacks; empty for none."""
    thoughts = [value for key in REASONING_KEYS if isinstance(value := message.extra.get(key), str)]
    if thoughts and not any(contains(text, thought) for thought in thoughts):
        return "the assistant's reasoning"
    if not all(contains(text, value) for value in _texts_of(message.extra.get("tool_calls", []))):
        return "the assistant's tool calls"
    return "" if contains(text, message.content) else f"a part of the {message.role}'s message"


def _texts_of(tool_calls: Any) -> Iterator[str]:
    """Yield names and arguments of tool calls as text."""
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


class TemplateChecker:
    """Compares messages with the text that a chat template renders of them.

    Args:
        template: chat template of one tokenizer.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self._ignored: dict[Any, list[int]] = {}
        self._trials: Counter[str] = Counter()
        self._written: set[str] = set()
        self._dropped_thoughts = False

    @property
    def unwritten(self) -> list[str]:
        """Parts of accepted messages that the template did not render."""
        keys = sorted({*self._trials} - self._written)
        return [*keys, "thoughts of earlier turns"] if self._dropped_thoughts else keys

    def find_missing_context(self, messages: Iterable[Message], text: str) -> str:
        """Name the part of context messages that a text lacks; empty for none.

        Reasoning may be missing: templates leave out that of earlier turns in generation, too.
        """
        stripped = remove_whitespace(text)
        for message in messages:
            missing = find_missing_part(message, stripped)
            if missing and message.role == "assistant":
                self._dropped_thoughts = True
                missing = find_missing_part(_without_thoughts(message), stripped)
            if missing:
                return missing
        return ""

    def find_ignored_messages(self, messages: Messages, *, generation_prompt: bool) -> list[int]:
        """Return the indices of messages whose content the template never renders.

        A short text can be in the rendered text by chance, so other contents are tried, once for
        all chats of the same roles and keys.
        """
        shape = (
            generation_prompt,
            *((m.role, bool(m.content), *sorted(m.extra)) for m in messages),
        )
        if shape not in self._ignored:
            self._ignored[shape] = self._try_markers(messages, generation_prompt)
        return self._ignored[shape]

    def _try_markers(self, messages: Messages, generation_prompt: bool) -> list[int]:
        markers = [f"rlhfmarker{index}x" if m.content else "" for index, m in enumerate(messages)]
        marked = (replace(m, content=mark) for m, mark in zip(messages, markers, strict=True))
        try:
            text = self.template.render(tuple(marked), generation_prompt=generation_prompt)
        except RefusedRow:  # the template interprets contents; they are compared as they are
            return []
        return [index for index, mark in enumerate(markers) if mark not in text]

    def try_extra_keys(self, messages: Messages, text: str, *, generation_prompt: bool) -> None:
        """Find out which extra keys of the messages the template renders.

        Args:
            messages: a chat.
            text: rendered text of the chat.
            generation_prompt: whether `text` ends with a generation prompt.
        """
        keys = {key for message in messages for key in message.extra} - {"tool_calls"}
        for key in [*keys, *(["tools"] if messages[0].tools else [])]:
            if key in self._written or self._trials[key] >= MAX_KEY_TRIALS:
                continue
            self._trials[key] += 1
            without = tuple(_without_key(message, key) for message in messages)
            try:
                other = self.template.render(without, generation_prompt=generation_prompt)
            except RefusedRow:
                other = ""
            if other != text:
                self._written.add(key)


def _without_thoughts(message: Message) -> Message:
    extra = {key: value for key, value in message.extra.items() if key not in REASONING_KEYS}
    return replace(message, content=message.content.rpartition(THOUGHT_END)[2], extra=extra)


def _without_key(message: Message, key: str) -> Message:
    if key == "tools":
        return replace(message, tools=())
    return replace(message, extra={k: v for k, v in message.extra.items() if k != key})

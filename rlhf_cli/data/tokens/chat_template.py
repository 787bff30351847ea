"""A tokenizer's chat template: how it takes messages, and how it ends a turn."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

import jinja2

from rlhf_cli.data.records.fields import TOKEN_BREAK, Message, Messages
from rlhf_cli.data.report import RefusedRow
from rlhf_cli.errors import ModelError

SAMPLE = (Message("user", "rlhfmarker0"), Message("assistant", "rlhfmarker1"))
"""A chat whose contents can be found in the rendered text."""

TOOL_NAME = "rlhfmarker2"
TOOL_CALL = {"type": "function", "function": {"name": TOOL_NAME, "arguments": {"x": "y"}}}
TOOL_CALL_MESSAGE = Message("assistant", "", extra={"tool_calls": [TOOL_CALL]})


class ChatTemplate:
    """Renders messages with the chat template of a tokenizer.

    What the template takes is found by trying: contents as text or as lists of parts, and null or
    an empty text as the content of a message that only calls tools.

    Args:
        tokenizer: tokenizer with a chat template.

    Raises:
        ModelError: it has no chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                "the rows are chats and the tokenizer has no chat template; "
                "give one with model.chat_template=FILE"
            )
        self.tokenizer = tokenizer
        self._content_as_parts, self._empty_content = False, ""
        self._choose("_content_as_parts", (False, True), SAMPLE[:1], SAMPLE[0].content)
        self._choose("_empty_content", ("", None), (SAMPLE[0], TOOL_CALL_MESSAGE), TOOL_NAME)

    def render(self, messages: Messages, *, generation_prompt: bool = False) -> str:
        """Render messages as text.

        Raises:
            RefusedRow: the template does not accept them.
        """
        tools = list(messages[0].tools) if messages else []
        try:
            text = self.tokenizer.apply_chat_template(
                [self._to_template_message(message) for message in messages],
                tools=tools or None,
                tokenize=False,
                add_generation_prompt=generation_prompt,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            raise RefusedRow(f"the chat template fails: {error}") from None
        return str(text)

    def escape(self, messages: Messages) -> Messages:
        """Escape special tokens in messages, so that they are tokenized as text.

        Assistant messages may contain special tokens with a meaning of their own, such as those
        around reasoning, but not those around turns. An end token at the end of an assistant
        message is removed, because the template writes it.
        """
        return tuple(self._escape(message) for message in messages)

    def _escape(self, message: Message) -> Message:
        escaper, content = self._escaper, message.content
        if message.role == "assistant":
            escaper, content = self._assistant_escaper, self._without_end_token(content)
        extra = {key: escaper.escape_value(value) for key, value in message.extra.items()}
        tools = tuple(self._escaper.escape_value(message.tools))
        return replace(message, content=escaper.escape(content), extra=extra, tools=tools)

    def _without_end_token(self, content: str) -> str:
        stripped = content.rstrip()
        ends = [end for end in (self.turn_end, self.tokenizer.eos_token) if end]
        found = [end for end in ends if stripped.endswith(end)]
        return stripped.removesuffix(found[0]) if found and stripped != found[0] else content

    @cached_property
    def turn_end(self) -> str:
        """Token that the template writes after an assistant message; empty for none."""
        after = self._text_around(SAMPLE)[-1].lstrip()
        return max(
            (token for token in self._added_tokens if after.startswith(token)), key=len, default=""
        )

    @cached_property
    def _turn_tokens(self) -> list[str]:
        """Tokens that the template writes before and between messages."""
        # around the first turn, not the last: templates write an empty thought before the last
        chat = (*SAMPLE, SAMPLE[0], replace(SAMPLE[1], content="rlhfmarker3"))
        before, between, *_ = self._text_around(chat)
        return [token for token in self._added_tokens if token in before + between]

    def _text_around(self, messages: Messages) -> list[str]:
        """Return the text before the first content, between contents, and after the last."""
        try:
            rest = self.render(messages)
        except RefusedRow:
            return [""] * (len(messages) + 1)
        parts = []
        for message in messages:
            before, _, rest = rest.partition(message.content)
            parts.append(before)
        return [*parts, rest]

    @cached_property
    def _added_tokens(self) -> list[str]:
        added = map(str, self.tokenizer.added_tokens_decoder.values())
        return list(dict.fromkeys([*added, *self.tokenizer.all_special_tokens]))

    @cached_property
    def special_tokens(self) -> list[str]:
        """Tokens that the tokenizer marks as special."""
        found = [str(t) for t in self.tokenizer.added_tokens_decoder.values() if t.special]
        return list(dict.fromkeys([*found, *self.tokenizer.all_special_tokens]))

    @cached_property
    def _escaper(self) -> SpecialTokenEscaper:
        return SpecialTokenEscaper([*self.special_tokens, *self._turn_tokens, self.turn_end])

    @cached_property
    def _assistant_escaper(self) -> SpecialTokenEscaper:
        tokenizer = self.tokenizer
        named = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token]
        return SpecialTokenEscaper([*filter(None, named), *self._turn_tokens, self.turn_end])

    def _to_template_message(self, message: Message) -> dict[str, Any]:
        empty = self._empty_content if "tool_calls" in message.extra else ""
        content: Any = message.content or empty
        if self._content_as_parts and content is not None:
            content = [{"type": "text", "text": content}]
        return {"role": message.role, "content": content, **message.extra}

    def _choose(self, name: str, options: Sequence[Any], messages: Messages, marker: str) -> None:
        """Set an attribute to the first option with which a marker is rendered, else the first."""
        for option in options:
            setattr(self, name, option)
            with suppress(RefusedRow):
                if marker in self.render(messages):
                    return
        setattr(self, name, options[0])


class SpecialTokenEscaper:
    """Puts a TOKEN_BREAK into special tokens in text, so that text cannot forge a turn's end.

    Args:
        tokens: texts of the tokens; those of one character cannot be broken and are ignored.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        listed = sorted({token for token in tokens if len(token) > 1}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, listed))) if listed else None

    def escape(self, text: str) -> str:
        """Return the text with every token broken."""
        while self._pattern is not None and self._pattern.search(text):
            text = self._pattern.sub(lambda found: found[0][0] + TOKEN_BREAK + found[0][1:], text)
        return text

    def escape_value(self, value: Any) -> Any:
        """Escape every text in a JSON value."""
        if isinstance(value, str):
            return self.escape(value)
        if isinstance(value, dict):
            return {self.escape(str(key)): self.escape_value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.escape_value(item) for item in value]
        return value


def turn_end(tokenizer: Any) -> int | None:
    """Return the token that the chat template writes after an assistant message, if any."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    token = ChatTemplate(tokenizer).turn_end
    return int(tokenizer.convert_tokens_to_ids(token)) if token else None


def boundary_tokens(tokenizer: Any) -> set[int]:
    """Return the tokens around text: begin, end and padding tokens, and the end of a turn.

    Other special and added tokens, such as labels and those around reasoning, count as text.
    """
    named = ("bos", "eos", "pad", "sep", "cls")
    found = {getattr(tokenizer, f"{name}_token_id", None) for name in named}
    return {int(token) for token in {*found, turn_end(tokenizer)} if token is not None}

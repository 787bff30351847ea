"""A tokenizer's chat template: how it takes messages, and how it ends a turn."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

import jinja2

from rlhf_cli.data.records.fields import BREAK, Message, Messages
from rlhf_cli.data.report import Refused
from rlhf_cli.errors import ModelError


class Escaper:
    """Puts a BREAK into every occurrence of some tokens in a text.

    Args:
        tokens: their texts; of one character alone there is nothing to break.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        listed = sorted({token for token in tokens if len(token) > 1}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, listed))) if listed else None

    def text(self, text: str) -> str:
        """The text, in which the tokenizer finds none of the tokens."""
        while self._pattern is not None and self._pattern.search(text):
            text = self._pattern.sub(lambda found: found[0][0] + BREAK + found[0][1:], text)
        return text

    def value(self, value: Any) -> Any:
        """The same of every text in a JSON value."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        return [self.value(item) for item in value] if isinstance(value, list | tuple) else value


SAMPLE = (Message("user", "rlhfmarker0"), Message("assistant", "rlhfmarker1"))
"""A chat whose contents are found again in what a template makes of it."""


CALLED = "rlhfmarker2"


CALL = {"type": "function", "function": {"name": CALLED, "arguments": {"x": "y"}}}


CALLING = Message("assistant", "", extra={"tool_calls": [CALL]})


class ChatTemplate:
    """Renders messages.

    What a template expects is found by trying: contents as text or as lists of parts, and for a
    message without text, null or an empty text.

    Args:
        tokenizer: has the template.

    Raises:
        ModelError: it has none.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                "the rows are chats and the tokenizer has no chat template; "
                "give one with model.chat_template=FILE"
            )
        self.tokenizer = tokenizer
        self._as_parts, self._empty = False, ""
        self._try("_as_parts", (False, True), SAMPLE[:1], SAMPLE[0].content)
        self._try("_empty", ("", None), (SAMPLE[0], CALLING), CALLED)

    def render(self, messages: Messages, *, generation_prompt: bool = False) -> str:
        """The text that the template makes of messages.

        Raises:
            Refused: the template does not take them.
        """
        tools = list(messages[0].tools) if messages else []
        try:
            text = self.tokenizer.apply_chat_template(
                [self._given(message) for message in messages],
                tools=tools or None,
                tokenize=False,
                add_generation_prompt=generation_prompt,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            raise Refused(f"the chat template fails: {error}") from None
        return str(text)

    def escaped(self, messages: Messages) -> Messages:
        """The messages, in which no text is a special token.

        What the assistant says may hold special tokens that mean something (a thought's borders,
        say), but none of those that stand around turns. Such a token at the end of what it says is
        left out: the template writes it.
        """
        return tuple(self._escape(message) for message in messages)

    def _escape(self, message: Message) -> Message:
        escaper, content = self._of_others, message.content
        if message.role == "assistant":
            escaper, content = self._of_assistant, self._without_end(content)
        extra = {key: escaper.value(value) for key, value in message.extra.items()}
        tools = tuple(self._of_others.value(message.tools))
        return replace(message, content=escaper.text(content), extra=extra, tools=tools)

    def _without_end(self, content: str) -> str:
        kept = content.rstrip()
        ends = [end for end in (self.turn_end, self.tokenizer.eos_token) if end]
        found = [end for end in ends if kept.endswith(end)]
        return kept.removesuffix(found[0]) if found and kept != found[0] else content

    @cached_property
    def turn_end(self) -> str:
        """The token that the template writes behind what an assistant says; empty for none."""
        behind = self._around(SAMPLE)[-1].lstrip()
        return max(
            (token for token in self._added if behind.startswith(token)), key=len, default=""
        )

    @cached_property
    def _around_turns(self) -> list[str]:
        """Tokens that the template writes before and between the messages of a chat."""
        # of the first turn, not of the last: templates write an empty thought before that
        *first, _ = self._around((*SAMPLE, SAMPLE[0], replace(SAMPLE[1], content="rlhfmarker3")))
        written = "".join(first[:2])
        return [token for token in self._added if token in written]

    def _around(self, messages: Messages) -> list[str]:
        """What stands before the first content, between the contents, and behind the last."""
        try:
            rest = self.render(messages)
        except Refused:
            return [""] * (len(messages) + 1)
        parts = []
        for message in messages:
            before, _, rest = rest.partition(message.content)
            parts.append(before)
        return [*parts, rest]

    @cached_property
    def _added(self) -> list[str]:
        added = map(str, self.tokenizer.added_tokens_decoder.values())
        return list(dict.fromkeys([*added, *self.tokenizer.all_special_tokens]))

    @cached_property
    def special(self) -> list[str]:
        """The tokens that the tokenizer itself calls special."""
        found = [str(t) for t in self.tokenizer.added_tokens_decoder.values() if t.special]
        return list(dict.fromkeys([*found, *self.tokenizer.all_special_tokens]))

    @cached_property
    def _of_others(self) -> Escaper:
        return Escaper([*self.special, *self._around_turns, self.turn_end])

    @cached_property
    def _of_assistant(self) -> Escaper:
        tokenizer = self.tokenizer
        named = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token]
        return Escaper([*filter(None, named), *self._around_turns, self.turn_end])

    def _given(self, message: Message) -> dict[str, Any]:
        """A message as the template takes it."""
        content: Any = message.content or (self._empty if "tool_calls" in message.extra else "")
        if self._as_parts and content is not None:
            content = [{"type": "text", "text": content}]
        return {"role": message.role, "content": content, **message.extra}

    def _try(self, setting: str, options: Sequence[Any], messages: Messages, marker: str) -> None:
        """Take the first option with which the template writes a marker; else the first."""
        for option in options:
            setattr(self, setting, option)
            with suppress(Refused):
                if marker in self.render(messages):
                    return
        setattr(self, setting, options[0])


def boundary_tokens(tokenizer: Any) -> set[int]:
    """Tokens that stand around texts and say nothing: begin, end, padding and the ends of turns.

    Other special and added tokens, such as labels and the borders of a thought, count as text.
    """
    named = ("bos", "eos", "pad", "sep", "cls")
    found = {getattr(tokenizer, f"{name}_token_id", None) for name in named}
    return {int(token) for token in {*found, turn_end(tokenizer)} if token is not None}


def turn_end(tokenizer: Any) -> int | None:
    """The token that the chat template writes behind what an assistant says, if there is one."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    token = ChatTemplate(tokenizer).turn_end
    return int(tokenizer.convert_tokens_to_ids(token)) if token else None

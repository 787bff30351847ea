"""Messages rendered by the tokenizer's template, and where the assistant speaks in the result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jinja2

from rlhf_cli.data.fields import Messages
from rlhf_cli.data.row_errors import Refused
from rlhf_cli.errors import ModelError

Span = tuple[int, int]
"""Characters [start, end) of a rendered text."""


class ChatRenderer:
    """Renders whole chats and finds the assistant's turns in them.

    Raises:
        ModelError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                "the rows are chats and the tokenizer has no chat template; "
                "give one with model.chat_template=FILE"
            )
        self.tokenizer = tokenizer
        special = map(str, tokenizer.added_tokens_decoder.values())
        self.turn_ends = tuple({*special, *tokenizer.all_special_tokens})

    def render(self, messages: Messages, *, generation_prompt: bool = False) -> str:
        """The text that the template makes of messages.

        Raises:
            Refused: the template does not take them.
        """
        turns = [{"role": turn.role, "content": turn.content} for turn in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=generation_prompt
            )
        except (jinja2.TemplateError, TypeError, IndexError) as error:
            raise Refused(f"the chat template fails: {error}") from None
        return str(text)

    def spans(self, messages: Messages, text: str, turns: list[int]) -> Iterator[Span]:
        """What the assistant says in its turns, with the token that ends each.

        Found by rendering the chat up to each turn: whatever the template puts after the prompt
        is said by the assistant.

        Args:
            messages: the whole chat.
            text: its rendering.
            turns: indices of the assistant's messages that are wanted.

        Raises:
            Refused: a part of the chat is rendered otherwise than within the whole.
        """
        for turn in turns:
            before = self.render(messages[:turn], generation_prompt=True)
            after = self.render(messages[: turn + 1])
            if not after.startswith(before):
                raise Refused(
                    "the chat template's generation prompt is not how it begins an assistant's turn"
                )
            if not text.startswith(after):
                raise Refused("the chat template renders a turn otherwise once others follow it")
            yield len(before), self._end(after)

    def closed(self, text: str) -> bool:
        """Whether a rendered turn ends with a special token, white space aside."""
        return text.rstrip().endswith(self.turn_ends)

    def _end(self, text: str) -> int:
        # white space after the token that ends the turn belongs to the template, not to the turn
        return len(text.rstrip()) if self.closed(text) else len(text)

"""Messages rendered by the tokenizer's template, and where the assistant speaks in the result."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jinja2

from rlhf_cli.data.records.fields import Messages
from rlhf_cli.data.records.row_errors import Refused
from rlhf_cli.data.tokens.pieces import Piece
from rlhf_cli.errors import ModelError


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
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            raise Refused(f"the chat template fails: {error}") from None
        return str(text)

    def pieces(self, messages: Messages, text: str, trained: Collection[int]) -> tuple[Piece, ...]:
        """A rendered chat, cut where the assistant begins and ends to speak.

        A response begins where the prompt of its turn would end, and no token reaches over a cut:
        so the tokens before a response are those that the model is given when it is to respond.

        Args:
            messages: the whole chat.
            text: its rendering, with or without a generation prompt.
            trained: indices of the assistant's messages that are trained.

        Raises:
            Refused: a trained turn is rendered otherwise than within the whole.
        """
        pieces, at = [], 0
        for turn, message in enumerate(messages):
            if message.role != "assistant":
                continue
            try:
                start, end = self._span(messages, text, turn)
            except Refused:
                if turn in trained:
                    raise
                continue  # of a turn that is only context, the borders do not matter
            pieces += [Piece(text[at:start]), Piece(text[start:end], turn in trained)]
            at = end
        pieces.append(Piece(text[at:]))
        return tuple(piece for piece in pieces if piece.text)

    def _span(self, messages: Messages, text: str, turn: int) -> tuple[int, int]:
        """Characters [start, end) of what the assistant says, with the token that ends the turn.

        Found by rendering the chat up to the turn: whatever the template puts after the prompt is
        said by the assistant.
        """
        if turn == 0:
            raise Refused("the chat begins with the assistant, so its first turn has no prompt")
        before = self.render(messages[:turn], generation_prompt=True)
        after = self.render(messages[: turn + 1])
        if not after.startswith(before):
            raise Refused(
                "the chat template's generation prompt is not how it begins an assistant's turn"
            )
        end = self._end(after, len(before), messages[turn].content.strip())
        if not text.startswith(after[:end]):
            raise Refused("the chat template renders a turn otherwise once others follow it")
        return len(before), end

    def closed(self, text: str) -> bool:
        """Whether a rendered turn ends with a special token, white space aside."""
        return text.rstrip().endswith(self.turn_ends)

    def _end(self, text: str, start: int, said: str) -> int:
        """Behind the special token that follows what is said.

        White space and other special tokens behind it belong to the template: Phi-3's ends the
        text with one more, whoever spoke last.
        """
        found = text.find(said, start)
        if found >= 0:
            rest = text[found + len(said) :].lstrip()
            ends = [token for token in self.turn_ends if rest.startswith(token)]
            if ends:
                return len(text) - len(rest) + max(map(len, ends))
        return len(text.rstrip()) if self.closed(text) else len(text)

"""Messages rendered by the tokenizer's template, and where the assistant speaks in the result."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf_cli.data.records.fields import Messages
from rlhf_cli.data.report import Refused
from rlhf_cli.data.tokens.chat_template import ChatTemplate
from rlhf_cli.data.tokens.encode import Piece
from rlhf_cli.data.tokens.template_checks import THOUGHT_END, MessageChecker, compact, left_out

OTHER_TEMPLATE = "another chat template with model.chat_template=FILE"


class Rewritten(Refused):
    """A whole chat is not what the model is given when it is to respond to its beginning.

    Attributes:
        what: is different; a clause.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} (give {OTHER_TEMPLATE})")
        self.what = what


@dataclass(frozen=True)
class ChatText:
    """A chat as text.

    Attributes:
        pieces: the trained ones are what the assistant says, with the token that ends its turn.
        closed: whether the last trained one has such a token.
        note: what is to be reported of the row; empty for nothing.
    """

    pieces: tuple[Piece, ...]
    closed: bool
    note: str = ""


class ChatRenderer:
    """Renders chats and finds the assistant's turns in them.

    Args:
        tokenizer: its template is used.

    Raises:
        ModelError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.template = ChatTemplate(tokenizer)
        self.checker = MessageChecker(self.template)

    def prompt(self, messages: Messages) -> tuple[Piece, ...]:
        """What the model is given when it is to respond to a chat.

        Raises:
            Refused: the template does not take the messages, or leaves out a part of them.
        """
        messages = self.template.escaped(messages)
        return self._context(messages)[1]

    def text(self, messages: Messages) -> str:
        """A whole chat as the template writes it.

        Raises:
            Refused: the template does not take the messages, or leaves out a part of them.
        """
        text = self.template.render(messages)
        self._require_context(messages, text, (), generation_prompt=False)
        return text

    def chat(self, messages: Messages, trained: Sequence[int]) -> ChatText:
        """A whole chat, cut where the assistant begins and ends to speak.

        Where the template writes responses otherwise once others follow (it drops their thoughts,
        say), or what is asked otherwise once it is answered, only the last response is trained,
        behind the prompt that the model would be given.

        Args:
            messages: the whole chat.
            trained: indices of the assistant's messages that are trained, in order.

        Raises:
            Refused: the template does not take the messages, or leaves out a part of them.
        """
        messages = self.template.escaped(messages)
        try:
            return self._whole(messages, trained)
        except Rewritten as reason:
            last = self._last(messages[: trained[-1] + 1])
            if len(trained) == 1:
                return last
            return replace(last, note=f"{_LAST_ALONE}, because {reason.what} ({_TO_TRAIN_ALL})")

    def _whole(self, messages: Messages, trained: Sequence[int]) -> ChatText:
        text = self.template.render(messages)
        self._require_context(messages, text, trained, generation_prompt=False)
        pieces = self._pieces(messages, text, trained)
        goes_on = trained[-1] < len(messages) - 1
        return ChatText(pieces, goes_on or self._closed(text))

    def _last(self, messages: Messages) -> ChatText:
        """The last message as the response to those before."""
        prompt, context = self._context(messages[:-1])
        response = self._response(messages, prompt)
        return ChatText((*context, Piece(response, True)), self._closed(response))

    def _context(self, messages: Messages) -> tuple[str, tuple[Piece, ...]]:
        """The prompt that messages make, as text and in pieces."""
        text = self.template.render(messages, generation_prompt=True)
        self._require_context(messages, text, (), generation_prompt=True)
        return text, self._pieces(messages, text, ())

    def _require_context(
        self, messages: Messages, text: str, trained: Collection[int], *, generation_prompt: bool
    ) -> None:
        """Refuse a text in which a part of the messages is missing, trained ones aside."""
        self.checker.try_keys(messages, text, generation_prompt=generation_prompt)
        passed_over = self.checker.passed_over(messages, generation_prompt=generation_prompt)
        for index in passed_over:
            raise Rewritten(f"{_LEAVES_OUT} the {messages[index].role}'s message")
        context = [message for index, message in enumerate(messages) if index not in trained]
        if missing := self.checker.left_out_of_context(context, text):
            raise Rewritten(f"{_LEAVES_OUT} {missing}")

    def _pieces(self, messages: Messages, text: str, trained: Collection[int]) -> tuple[Piece, ...]:
        """A rendered chat, cut where the assistant begins and ends to speak.

        A response begins where the prompt of its turn would end, and no token reaches over a cut:
        so the tokens before a response are those that the model is given when it is to respond.

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
            spoken = Piece(text[start:end], turn in trained, excluded=message.weight == 0)
            pieces += [Piece(text[at:start]), spoken]
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
        before = self.template.render(messages[:turn], generation_prompt=True)
        after = self.template.render(messages[: turn + 1])
        if not after.startswith(before):
            raise Rewritten(_OTHER_PROMPT)
        end = self._end(messages[: turn + 1], after, len(before))
        if not text.startswith(after[:end]):
            raise Rewritten("the chat template writes a turn otherwise once others follow it")
        if missing := left_out(messages[turn], compact(after[len(before) : end])):
            raise Rewritten(f"{_LEAVES_OUT} {missing}")
        return len(before), end

    def _response(self, messages: Messages, prompt: str) -> str:
        """What the assistant says in the last message, as it follows the prompt before.

        Raises:
            Refused: it cannot be written so.
        """
        after = self.template.render(messages)
        if after.startswith(prompt):
            response = after[len(prompt) : self._end(messages, after, len(prompt))]
            if not left_out(messages[-1], compact(response)):
                return response
        return self._continuation(messages, prompt)

    def _continuation(self, messages: Messages, prompt: str) -> str:
        """The last message as the model would have generated it.

        Serving templates cut thoughts out of finished turns, and some open one in the prompt; then
        what the assistant says is put between what the template writes before and behind it.
        """
        *context, message = messages
        marked = self.template.render((*context, replace(message, content=_MARKER)))
        head, found, tail = marked.partition(_MARKER)
        asked = context[-1].content.strip()
        if not found or not asked or asked not in head:
            raise Rewritten(_OTHER_PROMPT)
        if missing := left_out(replace(message, content=""), compact(marked)):
            raise Rewritten(f"{_LEAVES_OUT} {missing}")
        opening, expected = head.rpartition(asked)[2], prompt.rpartition(asked)[2]
        end = self.template.turn_end
        closing = tail[: tail.find(end) + len(end)] if end in tail else tail
        if opening.startswith(expected):
            return opening[len(expected) :] + message.content + closing
        if not expected.startswith(opening):
            raise Rewritten(_OTHER_PROMPT)
        return _behind(expected.removeprefix(opening), message.content) + closing

    def _closed(self, text: str) -> bool:
        """Whether a rendered turn ends with a token that ends turns, white space aside."""
        return text.rstrip().endswith(self._ends)

    @property
    def _ends(self) -> tuple[str, ...]:
        named = (self.template.turn_end, self.template.tokenizer.eos_token)
        return tuple(token for token in named if token)

    def _end(self, messages: Messages, text: str, start: int) -> int:
        """Behind the token that ends the last turn.

        White space and other special tokens behind it belong to the template: Phi-3's ends the
        text with one more, whoever spoke last.
        """
        message = messages[-1]
        said = message.content.strip()
        found = -1 if "tool_calls" in message.extra else text.find(said, start)
        if found >= 0:
            rest = text[found + len(said) :].lstrip()
            ends = [token for token in self._ends if rest.startswith(token)]
            if ends:
                return len(text) - len(rest) + max(map(len, ends))
        closers = (*self._ends, *self.template.special)
        return len(text.rstrip()) if text.rstrip().endswith(closers) else len(text)


def _behind(opened: str, content: str) -> str:
    """What follows of a response behind what the prompt has opened already, a thought say.

    Raises:
        Refused: it neither begins with that nor goes on with it.
    """
    mark, said = opened.strip(), content.lstrip()
    if said.startswith(mark):
        return said.removeprefix(mark).removeprefix(opened[len(opened.rstrip()) :])
    if THOUGHT_END in said:  # as the model itself writes it, behind that prompt
        return content
    raise Refused(
        f"the chat template's generation prompt ends with {mark}, with which the response does not "
        f"begin (begin it so, or give {OTHER_TEMPLATE})"
    )


_MARKER = "rlhfmarker"
_LAST_ALONE = "only the last response is trained"
_TO_TRAIN_ALL = (
    f"to train them all, give {OTHER_TEMPLATE}; data.train_on=last_turn asks for the last alone"
)
_LEAVES_OUT = "the chat template leaves out"
_OTHER_PROMPT = "the chat template's generation prompt is not how it begins an assistant's turn"

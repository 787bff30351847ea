"""Render chats by the chat template, and find the assistant's text in the result."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf_cli.data.records.fields import Messages
from rlhf_cli.data.report import RefusedRow
from rlhf_cli.data.tokens.chat_template import ChatTemplate
from rlhf_cli.data.tokens.encode import Segment
from rlhf_cli.data.tokens.template_checks import (
    THOUGHT_END,
    TemplateChecker,
    find_missing_part,
    remove_whitespace,
)

OTHER_TEMPLATE = "another chat template with model.chat_template=FILE"


class InconsistentTemplate(RefusedRow):
    """The template renders a turn of a whole chat otherwise than when the model generates it.

    Attributes:
        difference: what differs; a clause.
    """

    def __init__(self, difference: str) -> None:
        super().__init__(f"{difference} (give {OTHER_TEMPLATE})")
        self.difference = difference


@dataclass(frozen=True)
class RenderedChat:
    """A rendered chat in segments.

    Attributes:
        segments: those in the loss are the assistant's text with the token that ends its turn.
        ends_turn: whether the last segment in the loss has such a token.
        note: change to the row, for the report; empty for none.
    """

    segments: tuple[Segment, ...]
    ends_turn: bool
    note: str = ""


class ChatRenderer:
    """Renders chats and finds the assistant's turns in the text.

    Args:
        tokenizer: tokenizer with a chat template.

    Raises:
        ModelError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.template = ChatTemplate(tokenizer)
        self.checker = TemplateChecker(self.template)

    def render_prompt(self, messages: Messages) -> tuple[Segment, ...]:
        """Render a chat with the generation prompt for the next response.

        Raises:
            RefusedRow: the template does not accept the messages, or leaves out a part of them.
        """
        return self._render_context(self.template.escape(messages))[1]

    def render(self, messages: Messages) -> str:
        """Render a whole chat as text.

        Raises:
            RefusedRow: the template does not accept the messages, or leaves out a part of them.
        """
        text = self.template.render(messages)
        self._require_context(messages, text, (), generation_prompt=False)
        return text

    def render_segments(self, messages: Messages, in_loss: Sequence[int]) -> RenderedChat:
        """Render a chat in segments, split where the assistant's text begins and ends.

        If the template renders responses differently once other turns follow (it drops their
        reasoning, for example), or the prompt differently once it is answered, only the last
        response is in the loss, after the prompt that the model would be given.

        Args:
            messages: the whole chat.
            in_loss: indices of the assistant messages in the loss, rising.

        Raises:
            RefusedRow: the template does not accept the messages, or leaves out a part of them.
        """
        messages = self.template.escape(messages)
        try:
            return self._render_whole(messages, in_loss)
        except InconsistentTemplate as reason:
            last = self._render_last(messages[: in_loss[-1] + 1])
            if len(in_loss) == 1:
                return last
            note = f"{_LAST_ALONE}, because {reason.difference} ({_TO_TRAIN_ALL})"
            return replace(last, note=note)

    def _render_whole(self, messages: Messages, in_loss: Sequence[int]) -> RenderedChat:
        text = self.template.render(messages)
        self._require_context(messages, text, in_loss, generation_prompt=False)
        segments = self._split(messages, text, in_loss)
        continues = in_loss[-1] < len(messages) - 1
        return RenderedChat(segments, continues or self._ends_turn(text))

    def _render_last(self, messages: Messages) -> RenderedChat:
        """Render the last message as the response to the messages before."""
        prompt, context = self._render_context(messages[:-1])
        response = self._render_response(messages, prompt)
        return RenderedChat((*context, Segment(response, True)), self._ends_turn(response))

    def _render_context(self, messages: Messages) -> tuple[str, tuple[Segment, ...]]:
        """Render messages with a generation prompt, as text and in segments."""
        text = self.template.render(messages, generation_prompt=True)
        self._require_context(messages, text, (), generation_prompt=True)
        return text, self._split(messages, text, ())

    def _require_context(
        self, messages: Messages, text: str, in_loss: Collection[int], *, generation_prompt: bool
    ) -> None:
        """Require that a text contains all parts of the messages that are not in the loss."""
        self.checker.try_extra_keys(messages, text, generation_prompt=generation_prompt)
        ignored = self.checker.find_ignored_messages(messages, generation_prompt=generation_prompt)
        for index in ignored:
            raise InconsistentTemplate(f"{_LEAVES_OUT} the {messages[index].role}'s message")
        context = [message for index, message in enumerate(messages) if index not in in_loss]
        if missing := self.checker.find_missing_context(context, text):
            raise InconsistentTemplate(f"{_LEAVES_OUT} {missing}")

    def _split(
        self, messages: Messages, text: str, in_loss: Collection[int]
    ) -> tuple[Segment, ...]:
        """Split a rendered chat where the assistant's text begins and ends.

        A response begins where the generation prompt of its turn would end. No token crosses a
        segment border, so the tokens before a response are those that the model is given.

        Raises:
            RefusedRow: a turn in the loss is rendered differently within the whole chat.
        """
        segments, at = [], 0
        for turn, message in enumerate(messages):
            if message.role != "assistant":
                continue
            try:
                start, end = self._find_turn(messages, text, turn)
            except RefusedRow:
                if turn in in_loss:
                    raise
                continue  # the borders of a context turn do not matter
            response = Segment(text[start:end], turn in in_loss, excluded=message.weight == 0)
            segments += [Segment(text[at:start]), response]
            at = end
        segments.append(Segment(text[at:]))
        return tuple(segment for segment in segments if segment.text)

    def _find_turn(self, messages: Messages, text: str, turn: int) -> tuple[int, int]:
        """Return the characters [start, end) of an assistant turn, its end token included.

        The chat is rendered up to the turn: what the template writes after the generation prompt is
        the assistant's text.
        """
        if turn == 0:
            raise RefusedRow("the chat begins with the assistant, so its first turn has no prompt")
        before = self.template.render(messages[:turn], generation_prompt=True)
        after = self.template.render(messages[: turn + 1])
        if not after.startswith(before):
            raise InconsistentTemplate(_OTHER_PROMPT)
        end = self._find_turn_end(messages[: turn + 1], after, len(before))
        if not text.startswith(after[:end]):
            raise InconsistentTemplate(
                "the chat template writes a turn otherwise once others follow it"
            )
        response = remove_whitespace(after[len(before) : end])
        if missing := find_missing_part(messages[turn], response):
            raise InconsistentTemplate(f"{_LEAVES_OUT} {missing}")
        return len(before), end

    def _render_response(self, messages: Messages, prompt: str) -> str:
        """Render the last message as it follows the prompt of the messages before.

        Raises:
            RefusedRow: the template cannot render it so.
        """
        after = self.template.render(messages)
        if after.startswith(prompt):
            response = after[len(prompt) : self._find_turn_end(messages, after, len(prompt))]
            if not find_missing_part(messages[-1], remove_whitespace(response)):
                return response
        return self._continue_prompt(messages, prompt)

    def _continue_prompt(self, messages: Messages, prompt: str) -> str:
        """Return the last message as the model would have generated it.

        Templates for serving remove reasoning from finished turns, and some begin it in the
        generation prompt. The content is put between what the template writes before and after it.
        """
        *context, message = messages
        marked = self.template.render((*context, replace(message, content=_MARKER)))
        head, found, tail = marked.partition(_MARKER)
        asked = context[-1].content.strip()
        if not found or not asked or asked not in head:
            raise InconsistentTemplate(_OTHER_PROMPT)
        if missing := find_missing_part(replace(message, content=""), remove_whitespace(marked)):
            raise InconsistentTemplate(f"{_LEAVES_OUT} {missing}")
        opening, expected = head.rpartition(asked)[2], prompt.rpartition(asked)[2]
        end = self.template.turn_end
        closing = tail[: tail.find(end) + len(end)] if end in tail else tail
        if opening.startswith(expected):
            return opening[len(expected) :] + message.content + closing
        if not expected.startswith(opening):
            raise InconsistentTemplate(_OTHER_PROMPT)
        return _continue_opened(expected.removeprefix(opening), message.content) + closing

    def _ends_turn(self, text: str) -> bool:
        """Whether a rendered turn ends with an end token, ignoring white space."""
        return text.rstrip().endswith(self._end_tokens)

    @property
    def _end_tokens(self) -> tuple[str, ...]:
        named = (self.template.turn_end, self.template.tokenizer.eos_token)
        return tuple(token for token in named if token)

    def _find_turn_end(self, messages: Messages, text: str, start: int) -> int:
        """Return the index after the end token of the last turn.

        White space and other special tokens after it are not the assistant's: Phi-3's template ends
        the text with one more token, whoever spoke last.
        """
        message = messages[-1]
        content = message.content.strip()
        found = -1 if "tool_calls" in message.extra else text.find(content, start)
        if found >= 0:
            rest = text[found + len(content) :].lstrip()
            ends = [token for token in self._end_tokens if rest.startswith(token)]
            if ends:
                return len(text) - len(rest) + max(map(len, ends))
        special = (*self._end_tokens, *self.template.special_tokens)
        return len(text.rstrip()) if text.rstrip().endswith(special) else len(text)


def _continue_opened(opened: str, content: str) -> str:
    """Return the rest of a response after what the generation prompt already began of it.

    Raises:
        RefusedRow: the content neither begins with that nor continues it.
    """
    mark, stripped = opened.strip(), content.lstrip()
    if stripped.startswith(mark):
        return stripped.removeprefix(mark).removeprefix(opened[len(opened.rstrip()) :])
    if THOUGHT_END in stripped:  # the content continues reasoning that the prompt began
        return content
    raise RefusedRow(
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

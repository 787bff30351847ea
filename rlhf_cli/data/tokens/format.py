"""Format records as rows of text segments, each in the loss or not; no tokens yet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlhf_cli.data.records.fields import Message, Messages, Prompt, Response
from rlhf_cli.data.records.responses import has_turn_marks, split_response_turns
from rlhf_cli.data.records.types import (
    ChatRecord,
    LabelledRecord,
    PreferenceRecord,
    PromptCompletionRecord,
    RankedRecord,
    Record,
    ScoredRecord,
    TextRecord,
)
from rlhf_cli.data.report import RefusedRow
from rlhf_cli.data.tokens.chat import ChatRenderer
from rlhf_cli.data.tokens.encode import FormattedRow, Segment, SpecialTokens


def to_chat_record(record: Record) -> Record:
    """Make user and assistant messages of a record's text prompt and responses.

    Records with messages, and documents, are returned unchanged.

    Raises:
        RefusedRow: the prompt is empty, or a transcript with turn marks.
    """
    prompt = getattr(record, "prompt", None)
    if not isinstance(prompt, str):
        return record
    messages = (Message("user", _require_one_message(prompt)),)
    match record:
        case PreferenceRecord(chosen=chosen, rejected=rejected):
            return replace(
                record, prompt=messages, chosen=_to_reply(chosen), rejected=_to_reply(rejected)
            )
        case RankedRecord(responses=responses):
            return replace(record, prompt=messages, responses=tuple(map(_to_reply, responses)))
        case PromptCompletionRecord() | LabelledRecord() | ScoredRecord():
            return replace(record, prompt=messages, completion=_to_reply(record.completion))
    return record


def _to_reply(response: Response) -> Messages:
    return (Message("assistant", response),) if isinstance(response, str) else response


def _require_one_message(prompt: str) -> str:
    if not prompt.strip():
        raise RefusedRow("no prompt, of which template=always makes the user's message")
    if has_turn_marks(prompt):
        raise RefusedRow("a transcript with turn marks, of which template=always makes one message")
    return prompt


class RowFormatter:
    """Formats records as text rows with a loss mask per segment.

    Args:
        tokenizer: its chat template renders messages; text is used as it is.
        special_tokens: special tokens around text.
        train_on: `response`, `all` or `last_turn`.
    """

    def __init__(self, tokenizer: Any, special_tokens: SpecialTokens, train_on: str) -> None:
        self.tokenizer, self.special_tokens, self.train_on = tokenizer, special_tokens, train_on
        self._renderer: ChatRenderer | None = None

    @property
    def renderer(self) -> ChatRenderer:
        """Chat renderer, created at the first chat: other rows need no chat template."""
        if self._renderer is None:
            self._renderer = ChatRenderer(self.tokenizer)
        return self._renderer

    @property
    def unwritten(self) -> list[str]:
        """Parts of accepted messages that the chat template did not render."""
        return [] if self._renderer is None else self._renderer.checker.unwritten

    @property
    def used_template(self) -> bool:
        """Whether any record was rendered by the chat template."""
        return self._renderer is not None

    def format(self, record: Record) -> tuple[FormattedRow, ...]:
        """Format the rows of one record: one per response, else a single one.

        Raises:
            RefusedRow: the chat template does not show who says what.
        """
        match record:
            case TextRecord(text):
                return (self._format_document(text),)
            case ChatRecord(messages):
                return (self._format_chat(messages, 0),)
            case (
                PromptCompletionRecord(prompt, response)
                | LabelledRecord(prompt, response)
                | ScoredRecord(prompt, response)
            ):
                return (self._format_response(prompt, response),)
            case PreferenceRecord(prompt, chosen, rejected):
                return tuple(self._format_response(prompt, one) for one in (chosen, rejected))
            case RankedRecord(prompt, responses):
                return tuple(self._format_response(prompt, one) for one in responses)
        raise TypeError(f"no training example is made of a {type(record).__name__}")

    def _format_response(self, prompt: Prompt, response: Response) -> FormattedRow:
        if isinstance(prompt, str) and isinstance(response, str):
            return self._format_text(prompt, response)
        assert isinstance(prompt, tuple)  # fields.parse_response: both have the same form
        assert isinstance(response, tuple)
        return self._format_chat(prompt + response, len(prompt))

    def _format_document(self, text: str) -> FormattedRow:
        start, end = self.special_tokens.document_start, self.special_tokens.eos
        return FormattedRow((Segment(text, True),), prefix=(start,), suffix=(end,))

    def _format_text(self, prompt: str, completion: str) -> FormattedRow:
        # the human's turns in a response are not in the loss
        parts = split_response_turns(prompt, completion)
        segments = (Segment(text, is_assistant) for text, is_assistant in parts)
        special = self.special_tokens
        return FormattedRow((Segment(prompt), *segments), special.prefix, special.suffix)

    def _format_chat(self, messages: Messages, first_response: int) -> FormattedRow:
        """Format a chat whose responses are the assistant messages from `first_response` on."""
        responses = [
            index
            for index, message in enumerate(messages)
            if index >= first_response and message.role == "assistant" and message.weight
        ]
        if not responses:
            raise RefusedRow("no assistant message of weight 1")
        in_loss = responses[-1:] if self.train_on != "response" else responses
        chat = self.renderer.render_segments(messages, in_loss)
        # without an end-of-turn token of the template, eos teaches the model to stop
        suffix = () if chat.ends_turn else (self.special_tokens.eos,)
        return FormattedRow(chat.segments, suffix=suffix, note=chat.note)

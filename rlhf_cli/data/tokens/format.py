"""Records as rows of text segments, each marked for what is trained; not yet tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlhf_cli.data.records.fields import Message, Messages, Prompt, Response
from rlhf_cli.data.records.responses import HUMAN, MARK, parts_of_response
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
from rlhf_cli.data.report import Refused
from rlhf_cli.data.tokens.chat import ChatRenderer
from rlhf_cli.data.tokens.encode import Piece, Script, Specials


def as_chat(record: Record) -> Record:
    """The record with its text prompt as the user's message and each response as the assistant's.

    Messages stay as they are, and so do documents, which have no prompt.

    Raises:
        Refused: the prompt is no single message: it is empty, or a transcript with turn marks.
    """
    prompt = getattr(record, "prompt", None)
    if not isinstance(prompt, str):
        return record
    asked = (Message("user", _message(prompt)),)
    match record:
        case PreferenceRecord(chosen=chosen, rejected=rejected):
            return replace(record, prompt=asked, chosen=_said(chosen), rejected=_said(rejected))
        case RankedRecord(responses=responses):
            return replace(record, prompt=asked, responses=tuple(map(_said, responses)))
        case PromptCompletionRecord() | LabelledRecord() | ScoredRecord():
            return replace(record, prompt=asked, completion=_said(record.completion))
    return record


def _said(response: Response) -> Messages:
    return (Message("assistant", response),) if isinstance(response, str) else response


def _message(prompt: str) -> str:
    if not prompt.strip():
        raise Refused("no prompt, of which template=always makes the user's message")
    if HUMAN in prompt or MARK in prompt:
        raise Refused("a transcript with turn marks, of which template=always makes one message")
    return prompt


class ScriptWriter:
    """Writes records as scripts.

    Args:
        tokenizer: its template is used for messages, and for messages only.
        specials: the tokens around text.
        train_on: `response`, `all` or `last_turn`.
    """

    def __init__(self, tokenizer: Any, specials: Specials, train_on: str) -> None:
        self.tokenizer, self.specials, self.train_on = tokenizer, specials, train_on
        self._renderer: ChatRenderer | None = None

    @property
    def renderer(self) -> ChatRenderer:
        """Made when the first chat comes: other rows need no template."""
        if self._renderer is None:
            self._renderer = ChatRenderer(self.tokenizer)
        return self._renderer

    @property
    def unwritten(self) -> list[str]:
        """What the template did not write of messages that were taken all the same."""
        return [] if self._renderer is None else self._renderer.checker.unwritten

    @property
    def used_template(self) -> bool:
        """Whether any record was a chat."""
        return self._renderer is not None

    def write(self, record: Record) -> tuple[Script, ...]:
        """The scripts of a record, one for each row of its example.

        Raises:
            Refused: the template does not render it in a way that shows who says what.
        """
        match record:
            case TextRecord(text):
                return (self._document(text),)
            case ChatRecord(messages):
                return (self._chat(messages, 0),)
            case (
                PromptCompletionRecord(prompt, response)
                | LabelledRecord(prompt, response)
                | ScoredRecord(prompt, response)
            ):
                return (self._answer(prompt, response),)
            case PreferenceRecord(prompt, chosen, rejected):
                return (self._answer(prompt, chosen), self._answer(prompt, rejected))
            case RankedRecord(prompt, responses):
                return tuple(self._answer(prompt, response) for response in responses)
        raise TypeError(f"no training example is made of a {type(record).__name__}")

    def _answer(self, prompt: Prompt, response: Response) -> Script:
        if isinstance(prompt, str) and isinstance(response, str):
            return self._strings(prompt, response)
        assert isinstance(prompt, tuple)  # response has the prompt's form: fields.response
        assert isinstance(response, tuple)
        return self._chat(prompt + response, len(prompt))

    def _document(self, text: str) -> Script:
        start, end = self.specials.document_start, self.specials.eos
        return Script((Piece(text, True),), opening=(start,), closing=(end,))

    def _strings(self, prompt: str, completion: str) -> Script:
        # of a response with several turns, what the human says is not trained
        said = (Piece(text, spoken) for text, spoken in parts_of_response(prompt, completion))
        return Script((Piece(prompt), *said), self.specials.opening, self.specials.closing)

    def _chat(self, messages: Messages, first: int) -> Script:
        """A chat in which the assistant's messages from index `first` on are the responses."""
        turns = [
            index
            for index, message in enumerate(messages)
            if index >= first and message.role == "assistant" and message.weight
        ]
        if not turns:
            raise Refused("no assistant message of weight 1")
        wanted = turns[-1:] if self.train_on != "response" else turns
        chat = self.renderer.chat(messages, wanted)
        # a template without a token for the end of a turn would teach nothing about stopping
        return Script(
            chat.pieces, closing=() if chat.closed else (self.specials.eos,), note=chat.note
        )

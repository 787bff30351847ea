"""Text prompts and responses as the turns of a chat."""

from __future__ import annotations

from dataclasses import replace

from rlhf_cli.data.records.fields import Message, Messages, Response
from rlhf_cli.data.records.record import (
    LabelledRecord,
    PreferenceRecord,
    PromptCompletionRecord,
    RankedRecord,
    Record,
    ScoredRecord,
)
from rlhf_cli.data.records.row_errors import Refused
from rlhf_cli.data.records.transcripts import HUMAN, MARK


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

"""Messages of transcripts: text with the turn marks of Anthropic's HH data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlhf_cli.data.records.fields import Message, Messages
from rlhf_cli.data.records.responses import ASSISTANT_MARK, HUMAN_MARK, has_turn_marks, split_turns
from rlhf_cli.data.records.types import Record
from rlhf_cli.data.report import RefusedRow

_ROLES = {HUMAN_MARK: "user", ASSISTANT_MARK: "assistant"}
_RESPONSES = ("completion", "chosen", "rejected")


def transcript_to_messages(record: Record) -> Record:
    """Make messages of a record whose prompt is a transcript; other records are unchanged.

    White space around each turn is removed.

    Raises:
        RefusedRow: the prompt has text before its first mark, or does not end with the assistant's.
    """
    prompt = getattr(record, "prompt", None)
    if not isinstance(prompt, str) or not has_turn_marks(prompt):
        return record
    if not prompt.endswith(ASSISTANT_MARK):
        raise RefusedRow("a transcript that does not end with the assistant's turn mark")
    as_any: Any = record
    changes: dict[str, Any] = {"prompt": _to_messages(prompt.removesuffix(ASSISTANT_MARK))}
    for name in _RESPONSES:
        if hasattr(record, name):
            changes[name] = _to_messages(ASSISTANT_MARK + getattr(record, name))
    if hasattr(record, "responses"):
        changes["responses"] = tuple(_to_messages(ASSISTANT_MARK + r) for r in as_any.responses)
    changed: Record = replace(as_any, **changes)
    return changed


def _to_messages(text: str) -> Messages:
    before, *turns = split_turns(text)
    if before.strip():
        raise RefusedRow("a transcript with text before its first turn mark")
    messages = []
    for turn in turns:
        mark = next(mark for mark in _ROLES if turn.startswith(mark))
        messages.append(Message(_ROLES[mark], turn.removeprefix(mark).strip()))
    if not messages:
        raise RefusedRow("a transcript without a turn before the response")
    return tuple(messages)

"""Responses that another speaker's turn follows: a conversation that the human ends."""

from __future__ import annotations

from typing import Any

from rlhf_cli.data.records.shapes.made import Columns
from rlhf_cli.data.records.transcripts import HUMAN, MARK

NOTE = "the turns after the assistant's last one were left out of a response"

_RESPONSES = ("chosen", "rejected", "completion")


def end_with_assistant(columns: Columns) -> tuple[dict[str, Any], bool]:
    """The row with each response ended by the assistant's last turn, and whether any was cut."""
    found = dict(columns)
    marked = _has_marks(columns.get("prompt"))
    for name in _RESPONSES:
        if name in found:
            found[name] = _ended(found[name], marked)
    if isinstance(found.get("responses"), list):
        found["responses"] = [_ended(item, marked) for item in found["responses"]]
    return found, found != columns


def _has_marks(prompt: Any) -> bool:
    return isinstance(prompt, str) and prompt.rstrip().endswith(MARK)


def _ended(response: Any, marked: bool) -> Any:
    if isinstance(response, str):
        return _ended_text(response, marked)
    if not isinstance(response, list):
        return response
    roles = [turn.get("role") if isinstance(turn, dict) else None for turn in response]
    if "assistant" not in roles:
        return response
    last = len(roles) - roles[::-1].index("assistant")
    return response[:last]


def _ended_text(response: str, marked: bool) -> str:
    """Text with turn marks, its own or those of the prompt before it."""
    start = response.rfind(MARK)
    if start < 0 and not marked:
        return response
    end = response.find(HUMAN, max(start, 0))
    return response if end < 0 else response[:end]

"""Conversations of `from` and `value`, as ShareGPT and LLaMA-Factory write them, as messages."""

from __future__ import annotations

from typing import Any

from rlhf_cli.data.records.shapes.made import Columns, Made, MadeColumns, made

SPEAKERS = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}

_MESSAGE_COLUMNS = ("messages", "conversations", "prompt", "completion", "chosen", "rejected")
_OURS = (("role", "from"), ("content", "value"))


def read_messages(columns: Columns) -> dict[str, Any]:
    """The row with `role` and `content` in every column that holds messages.

    A single message becomes a list of one; an object of lists, which `datasets` makes of a list of
    objects, becomes the list again.
    """
    found = dict(columns)
    for name in _MESSAGE_COLUMNS:
        if name in found:
            found[name] = as_messages(found[name])
    if isinstance(found.get("responses"), list):
        found["responses"] = [as_messages(item) for item in found["responses"]]
    return found


def as_messages(value: Any) -> Any:
    """A list of messages with `role` and `content`; what is none stays as it is."""
    if isinstance(value, list):
        return [_message(item) for item in value]
    if not isinstance(value, dict):
        return value
    said = _message(value)
    if not {"role", "content"} <= set(said):
        return value
    columns = [said["role"], said["content"]]
    if all(isinstance(column, list) for column in columns) and isinstance(said["role"], list):
        return _rows(value) if len({*map(len, columns)}) == 1 else value
    return [said]


def _rows(table: dict[str, list[Any]]) -> list[Any]:
    rows = zip(*table.values(), strict=False)
    return [_message(dict(zip(table, row, strict=True))) for row in rows]


def _message(item: Any) -> Any:
    """One message: `from` and `value` are read where `role` and `content` are missing or null."""
    if not isinstance(item, dict):
        return item
    said = dict(item)
    for ours, theirs in _OURS:
        if said.get(ours) is None and said.get(theirs) is not None:
            said[ours] = said.pop(theirs)
    if not {"role", "content"} <= set(said):
        return item
    for _, theirs in _OURS:
        if said.get(theirs, "") is None:
            del said[theirs]
    role = said["role"]
    return {**said, "role": SPEAKERS.get(role, role) if isinstance(role, str) else role}


def conversation(columns: Columns) -> MadeColumns:
    """`conversations`, with the text of `system` in front, as `messages`."""
    turns = columns.get("conversations")
    return {} if turns is None else {"messages": behind_system(columns, turns, "conversations")}


def behind_system(columns: Columns, turns: Any, *sources: str) -> Made:
    """Messages behind the text of the column `system`, where they have no system message.

    Args:
        columns: of the row.
        turns: its messages, of any form.
        sources: the columns that these were made of.
    """
    system = columns.get("system")
    if not isinstance(turns, list) or not isinstance(system, str) or not system.strip():
        return made(turns, *sources)
    first = turns[0] if turns else None
    if isinstance(first, dict) and first.get("role") in ("system", "developer"):
        return made(turns, *sources)
    return made([{"role": "system", "content": system}, *turns], *sources, "system")

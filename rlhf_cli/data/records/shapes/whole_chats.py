"""Columns that one list of messages stands for: a prompt, a response, or both."""

from __future__ import annotations

from typing import Any

from rlhf_cli.data.records.row_errors import Malformed
from rlhf_cli.data.records.shapes.made import Columns, MadeColumns, made


def kto_label(columns: Columns) -> MadeColumns:
    """LLaMA-Factory's `kto_tag` is a label."""
    tag = columns.get("kto_tag")
    if tag is None or columns.get("label") is not None:
        return {}
    return {"label": made(tag, "kto_tag")}


def messages_as_prompt(columns: Columns) -> MadeColumns:
    """`messages` that wait for a reply are the prompt of the responses beside them."""
    turns = columns.get("messages")
    answered = any(columns.get(name) is not None for name in ("chosen", "responses", "completion"))
    if not answered or columns.get("prompt") is not None or _last_role(turns) in ("", "assistant"):
        return {}
    return {"prompt": made(turns, "messages")}


def judged_reply(columns: Columns) -> MadeColumns:
    """Messages with a label or a score: it is that of the last reply."""
    turns = columns.get("messages")
    judged = any(columns.get(name) is not None for name in ("label", "score"))
    others = any(columns.get(name) is not None for name in ("prompt", "completion"))
    if not judged or others or _last_role(turns) != "assistant" or len(turns or ()) < 2:
        return {}
    assert isinstance(turns, list)  # it has a last role
    return {"prompt": made(turns[:-1], "messages"), "completion": made(turns[-1:], "messages")}


def as_conversation(columns: Columns) -> MadeColumns:
    """A prompt and its completion as `messages`, for `data.format=chat`.

    Raises:
        Malformed: one of them is neither text nor messages.
    """
    prompt, completion = columns.get("prompt"), columns.get("completion")
    if prompt is None or completion is None or columns.get("messages") is not None:
        return {}
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    said = completion
    if isinstance(completion, str):
        said = [{"role": "assistant", "content": completion}]
    if not isinstance(asked, list) or not isinstance(said, list):
        raise Malformed("prompt, completion: need text or a list of messages")
    whole = said if said[: len(asked)] == asked and len(said) > len(asked) else [*asked, *said]
    return {"messages": made(whole, "prompt", "completion")}


def _last_role(turns: Any) -> str:
    """The role of the last message; empty where there is none."""
    last = turns[-1] if isinstance(turns, list) and turns else None
    role = last.get("role") if isinstance(last, dict) else None
    return role if isinstance(role, str) else ""

"""Message trees, as OpenAssistant publishes them: a prompt, replies, and replies to replies.

A file has one row per message or one row per tree. Messages are assembled to trees; a tree is
expanded into several rows: its conversations, the rankings of its replies, or its prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from rlhf_cli.data.report import MalformedRow, RefusedRow
from rlhf_cli.data.sources.base import RawRow, describe_value

MESSAGE_COLUMNS = ("message_id", "parent_id", "role", "text")

TreeMessage = dict[str, Any]
Thread = list[TreeMessage]
"""The messages from the first of a tree to one of its replies."""

_PROMPTER_ROLES = ("prompter", "user", "human")


def is_tree_message(row: RawRow) -> bool:
    """Whether a row is one message that names its parent."""
    return isinstance(row.parsed, dict) and set(MESSAGE_COLUMNS) <= set(row.parsed)


def assemble_trees(rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """Yield one row per tree if the first row is a message of a tree, else the rows unchanged.

    The row of a tree has its first message as `prompt`, with `replies` in every message, and the
    location of that message. All rows are held in memory: replies can be anywhere in the file.
    """
    first = next(rows, None)
    if first is None:
        return
    if is_tree_message(first):
        yield from _assemble(list(chain([first], rows)))
    else:
        yield first
        yield from rows


def _assemble(rows: list[RawRow]) -> Iterator[RawRow]:
    by_id: dict[Any, TreeMessage] = {}
    messages: list[tuple[RawRow, TreeMessage]] = []
    for row in rows:
        message, error = _read_message(row, by_id)
        if error is not None:
            yield replace(row, parsed=error)
        elif message is not None:
            by_id[message["message_id"]] = message
            messages.append((row, message))
    for row, message in messages:
        parent = message["parent_id"]
        if parent is None or parent == "":
            continue
        if parent in by_id:
            by_id[parent]["replies"].append(message)
        else:
            yield replace(row, parsed=RefusedRow("a reply to a message that is not in the data"))
    for row, message in messages:
        if message["parent_id"] in (None, ""):
            yield replace(row, parsed={"prompt": message}, untyped=False)


def _read_message(
    row: RawRow, by_id: dict[Any, TreeMessage]
) -> tuple[TreeMessage | None, MalformedRow | RefusedRow | None]:
    """Return the message of a row, without replies yet, or the row's error."""
    if not isinstance(row.parsed, dict):
        return None, row.parsed
    missing = [name for name in MESSAGE_COLUMNS if name not in row.parsed]
    if missing:
        return None, MalformedRow(f"no column {', '.join(missing)}; need a message of a tree")
    message_id = row.parsed["message_id"]
    if not isinstance(message_id, str | int) or message_id in by_id:
        return None, MalformedRow(
            f"message_id: got {message_id!r}; need an id that no other message has"
        )
    return {**row.parsed, "replies": []}, None


def is_tree(columns: Any) -> bool:
    """Whether the `prompt` of a row is a message with replies."""
    prompt = columns.get("prompt") if isinstance(columns, dict) else None
    return isinstance(prompt, dict) and {"text", "role", "replies"} <= set(prompt)


def expand_tree(row: RawRow, kinds: Sequence[str]) -> Iterable[RawRow]:
    """Expand a tree into rows of one kind of record.

    Args:
        row: row whose `prompt` is the first message of a tree.
        kinds: names of the accepted record kinds. Rankings are preferred to pairs, and prompts to
            conversations.
    """
    kind = next((kind for kind in _EXPANDERS if kind in kinds), None)
    if kind is None or not isinstance(row.parsed, dict):
        return [row]
    others = {name: value for name, value in row.parsed.items() if name != "prompt"}
    expand, missing = _EXPANDERS[kind]
    try:
        expanded = list(expand(row.parsed["prompt"]))
    except MalformedRow as error:
        return [replace(row, parsed=error)]
    if not expanded:
        return [replace(row, parsed=RefusedRow(f"the tree has no {missing}"))]
    return [replace(row, parsed={**others, **columns}) for columns in expanded]


def _walk(root: TreeMessage) -> Iterator[tuple[Thread, list[TreeMessage]]]:
    """Yield the thread up to every kept message, and the replies to it.

    Raises:
        MalformedRow: a message is not an object, or its replies are not a list.
    """
    stack: list[tuple[Thread, TreeMessage]] = [([], root)] if _is_kept(root) else []
    while stack:
        before, message = stack.pop()
        thread = [*before, message]
        replies = _replies(message)
        yield thread, replies
        stack.extend((thread, reply) for reply in reversed(replies))


def _replies(message: TreeMessage) -> list[TreeMessage]:
    replies = message.get("replies")
    listed = [] if replies is None else replies
    if not isinstance(listed, list) or not all(isinstance(reply, dict) for reply in listed):
        raise MalformedRow(f"replies: got {describe_value(replies)}; need a list of messages")
    return [reply for reply in listed if _is_kept(reply)]


def _is_kept(message: TreeMessage) -> bool:
    """Whether a message was neither deleted nor rejected by its reviewers."""
    return message.get("deleted") is not True and message.get("review_result") is not False


def _conversations(root: TreeMessage) -> Iterator[dict[str, Any]]:
    """Yield every conversation up to its last assistant message."""
    for thread, replies in _walk(root):
        continues = any(_replies(reply) for reply in replies)
        if thread[-1].get("role") == "assistant" and not continues:
            yield {"messages": _to_messages(thread)}


def _rankings(root: TreeMessage) -> Iterator[dict[str, Any]]:
    """Yield ranked replies; the score is minus the rank, because rank 0 is the best."""
    for thread, ranked in _ranked_replies(root):
        texts = [reply.get("text") for reply in ranked]
        scores = [-reply["rank"] for reply in ranked]
        yield {"prompt": _to_messages(thread), "responses": texts, "scores": scores}


def _pairs(root: TreeMessage) -> Iterator[dict[str, Any]]:
    """Yield the best and the worst of ranked replies as a preference pair."""
    for thread, ranked in _ranked_replies(root):
        best, worst = ranked[0].get("text"), ranked[-1].get("text")
        yield {"prompt": _to_messages(thread), "chosen": best, "rejected": worst}


def _ranked_replies(root: TreeMessage) -> Iterator[tuple[Thread, list[TreeMessage]]]:
    """Yield threads that end with the prompter and have ranked replies, best reply first."""
    for thread, replies in _walk(root):
        ranked = [reply for reply in replies if type(reply.get("rank")) in (int, float)]
        ranked.sort(key=lambda reply: float(reply["rank"]))
        different = len({reply["rank"] for reply in ranked}) > 1
        if different and thread[-1].get("role") in _PROMPTER_ROLES:
            yield thread, ranked


def _prompts(root: TreeMessage) -> Iterator[dict[str, Any]]:
    """Yield the thread up to every message of the prompter."""
    for thread, _ in _walk(root):
        if thread[-1].get("role") in _PROMPTER_ROLES:
            yield {"prompt": _to_messages(thread)}


def _to_messages(thread: Thread) -> list[dict[str, Any]]:
    return [{"role": turn.get("role"), "content": turn.get("text")} for turn in thread]


_EXPANDERS: dict[str, tuple[Callable[[TreeMessage], Iterator[dict[str, Any]]], str]] = {
    "ranked": (_rankings, "message with ranked replies"),
    "preference": (_pairs, "message with ranked replies"),
    "prompt": (_prompts, "message of a prompter"),
    "chat": (_conversations, "message of the assistant"),
}
"""Record kind -> its expansion, and what a tree without such rows lacks."""

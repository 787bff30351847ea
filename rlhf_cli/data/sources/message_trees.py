"""Trees of messages, as OpenAssistant publishes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from rlhf_cli.data.report import Malformed, Refused
from rlhf_cli.data.sources.base import RawRow, show_value

COLUMNS = ("message_id", "parent_id", "role", "text")


def is_message_of_tree(row: RawRow) -> bool:
    """Whether a row is one message that names the message it replies to."""
    return isinstance(row.found, dict) and set(COLUMNS) <= set(row.found)


def gather_trees(rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """Rows as they are; or where the first one is a message of a tree, a row for each tree.

    A tree's row has its first message as `prompt`, with `replies` in every message, and the place
    of that message. All rows are held in memory meanwhile: the replies to a message can stand
    anywhere.
    """
    first = next(rows, None)
    if first is None:
        return
    if is_message_of_tree(first):
        yield from _trees(list(chain([first], rows)))
    else:
        yield first
        yield from rows


def _trees(rows: list[RawRow]) -> Iterator[RawRow]:
    messages: dict[Any, dict[str, Any]] = {}
    roots: list[tuple[RawRow, dict[str, Any]]] = []
    for row in rows:
        message, wrong = _message(row, messages)
        if wrong is not None:
            yield replace(row, found=wrong)
        elif message is not None:
            messages[message["message_id"]] = message
            roots.append((row, message))
    for row, message in roots:
        parent = message["parent_id"]
        if parent is None or parent == "":
            continue
        if parent in messages:
            messages[parent]["replies"].append(message)
        else:
            yield replace(row, found=Refused("a reply to a message that is not in the data"))
    for row, message in roots:
        if message["parent_id"] in (None, ""):
            yield replace(row, found={"prompt": message}, untyped=False)


def _message(
    row: RawRow, known: dict[Any, dict[str, Any]]
) -> tuple[dict[str, Any] | None, Malformed | Refused | None]:
    """The message of a row with no replies yet, or what is wrong with the row."""
    if not isinstance(row.found, dict):
        return None, row.found
    missing = [name for name in COLUMNS if name not in row.found]
    if missing:
        return None, Malformed(f"no column {', '.join(missing)}; need a message of a tree")
    name = row.found["message_id"]
    if not isinstance(name, str | int) or name in known:
        return None, Malformed(f"message_id: got {name!r}; need the name of one message alone")
    return {**row.found, "replies": []}, None


Message = dict[str, Any]


Thread = list[Message]


_PROMPTER = ("prompter", "user", "human")


def is_tree(found: Any) -> bool:
    """Whether a row's `prompt` is a message with replies."""
    prompt = found.get("prompt") if isinstance(found, dict) else None
    return isinstance(prompt, dict) and {"text", "role", "replies"} <= set(prompt)


def unfold(row: RawRow, kinds: Sequence[str]) -> Iterable[RawRow]:
    """The rows that a tree stands for.

    Args:
        row: its `prompt` is the tree's first message.
        kinds: names of the kinds of record that are wanted; a ranking is preferred to a pair, and a
            prompt to a conversation.
    """
    kind = next((kind for kind in _MAKERS if kind in kinds), None)
    if kind is None or not isinstance(row.found, dict):
        return [row]
    other = {name: value for name, value in row.found.items() if name != "prompt"}
    make, lacks = _MAKERS[kind]
    try:
        made = list(make(row.found["prompt"]))
    except Malformed as error:
        return [replace(row, found=error)]
    if not made:
        return [replace(row, found=Refused(f"the tree has no {lacks}"))]
    return [replace(row, found={**other, **columns}) for columns in made]


def _walk(root: Message) -> Iterator[tuple[Thread, list[Message]]]:
    """Every message that was not deleted: what leads to it, itself included, and its replies.

    Raises:
        Malformed: a message is no object, or its replies are no list.
    """
    open_threads: list[tuple[Thread, Message]] = [([], root)] if _stands(root) else []
    while open_threads:
        before, message = open_threads.pop()
        thread = [*before, message]
        replies = _replies(message)
        yield thread, replies
        open_threads.extend((thread, reply) for reply in reversed(replies))


def _replies(message: Message) -> list[Message]:
    replies = message.get("replies")
    listed = [] if replies is None else replies
    if not isinstance(listed, list) or not all(isinstance(reply, dict) for reply in listed):
        raise Malformed(f"replies: got {show_value(replies)}; need a list of messages")
    return [reply for reply in listed if _stands(reply)]


def _stands(message: Message) -> bool:
    """Whether it was neither deleted nor turned down by its reviewers."""
    return message.get("deleted") is not True and message.get("review_result") is not False


def _conversations(root: Message) -> Iterator[dict[str, Any]]:
    """Every conversation up to the assistant's last message in it."""
    for thread, replies in _walk(root):
        goes_on = any(_replies(reply) for reply in replies)
        if thread[-1].get("role") == "assistant" and not goes_on:
            yield {"messages": _turns(thread)}


def _rankings(root: Message) -> Iterator[dict[str, Any]]:
    """The ranked replies to a message; rank 0 is the best, so a score is the rank below zero."""
    for thread, ranked in _ranked(root):
        texts = [reply.get("text") for reply in ranked]
        scores = [-reply["rank"] for reply in ranked]
        yield {"prompt": _turns(thread), "responses": texts, "scores": scores}


def _pairs(root: Message) -> Iterator[dict[str, Any]]:
    """The best and the worst of the ranked replies to a message."""
    for thread, ranked in _ranked(root):
        best, worst = ranked[0].get("text"), ranked[-1].get("text")
        yield {"prompt": _turns(thread), "chosen": best, "rejected": worst}


def _ranked(root: Message) -> Iterator[tuple[Thread, list[Message]]]:
    """Threads that end with a message whose replies are ranked, and these from best to worst."""
    for thread, replies in _walk(root):
        ranked = [reply for reply in replies if type(reply.get("rank")) in (int, float)]
        ranked.sort(key=lambda reply: float(reply["rank"]))
        if len({reply["rank"] for reply in ranked}) > 1 and thread[-1].get("role") in _PROMPTER:
            yield thread, ranked


def _prompts(root: Message) -> Iterator[dict[str, Any]]:
    """What led to each of the prompter's messages."""
    for thread, _ in _walk(root):
        if thread[-1].get("role") in _PROMPTER:
            yield {"prompt": _turns(thread)}


def _turns(thread: Thread) -> list[dict[str, Any]]:
    return [{"role": turn.get("role"), "content": turn.get("text")} for turn in thread]


_MAKERS: dict[str, tuple[Callable[[Message], Iterator[dict[str, Any]]], str]] = {
    "ranked": (_rankings, "message with ranked replies"),
    "preference": (_pairs, "message with ranked replies"),
    "prompt": (_prompts, "message of a prompter"),
    "chat": (_conversations, "message of the assistant"),
}

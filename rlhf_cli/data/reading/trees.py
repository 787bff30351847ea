"""Messages of trees, one a row as OpenAssistant publishes them, put together again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

from rlhf_cli.data.reading.raw import RawRow
from rlhf_cli.data.records.row_errors import Malformed, Refused

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

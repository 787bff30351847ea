"""Bring rows of known other layouts under our columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from rlhf_cli.data.records import fields
from rlhf_cli.data.records.normalize import (
    NOTE,
    Columns,
    end_with_assistant,
    read_lists,
    read_messages,
)
from rlhf_cli.data.report import Malformed
from rlhf_cli.data.sources.base import show_value


class Made(NamedTuple):
    """A value for one of our columns, and the names of the columns that it was made of."""

    value: Any
    sources: frozenset[str]


MadeColumns = dict[str, Made]
"""Our column -> what it becomes; empty where the row does not have the shape."""


def made(value: Any, *sources: str) -> Made:
    """A value that was made of some columns."""
    return Made(value, frozenset(sources))


SHAPE_COLUMNS = (
    *("conversations", "instruction", "input", "output", "history", "system", "kto_tag"),
    *("human_ref_A", "human_ref_B", "labels"),
)
"""Columns of other shapes that are read here; `data.columns` can name them too."""


@dataclass(frozen=True)
class Adapted:
    """A row under our columns.

    Attributes:
        columns: ours beside the row's own; null ones are left out.
        sources: our column -> the row's columns that it was made of, where it was made.
        notes: what was done to the row that a user wants to know.
    """

    columns: dict[str, Any]
    sources: dict[str, frozenset[str]]
    notes: tuple[str, ...] = ()


def adapt(columns: Columns, *, as_chat: bool, untyped: bool = False) -> Adapted:
    """Bring a row into our columns, where it has one of the known shapes.

    Args:
        columns: under our names where `data.columns` says so.
        as_chat: make messages of a prompt and what follows it.
        untyped: all values are text, as in a `.csv`.

    Raises:
        Malformed: the shape is one of these, but a value is not.
        Refused: a column of text holds messages.
    """
    found = without_nulls(read_lists(columns, untyped=untyped))
    found, cut = end_with_assistant(read_messages(found))
    adapted = Adapted(found, {}, (NOTE,) if cut else ())
    for shape in (kto_label, comments, conversation):
        adapted = _with(adapted, shape(adapted.columns))
    adapted = _with(adapted, instruction(adapted.columns, as_chat=as_chat))
    for shape in (messages_as_prompt, judged_reply):
        adapted = _with(adapted, shape(adapted.columns))
    return _with(adapted, as_conversation(adapted.columns)) if as_chat else adapted


def without_nulls(columns: Columns) -> dict[str, Any]:
    """A null column is a missing one: files that were merged have every column in every row."""
    return {name: value for name, value in columns.items() if value is not None}


def _with(row: Adapted, made: MadeColumns) -> Adapted:
    """The row with what a shape makes of it; a column that is there already stays."""
    if not made:  # most rows have no shape but ours
        return row
    new = {name: item for name, item in made.items() if name not in row.columns}
    sources = {
        name: frozenset().union(*(row.sources.get(source, {source}) for source in item.sources))
        for name, item in new.items()
    }
    values = {name: item.value for name, item in new.items()}
    return Adapted({**row.columns, **values}, {**row.sources, **sources}, row.notes)


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


# The two prompts of Taori et al. 2023 (github.com/tatsu-lab/stanford_alpaca, train.py).
ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)


def instruction(columns: Columns, *, as_chat: bool) -> MadeColumns:
    """`instruction`, `input` and `output` as `prompt` and `completion`, or as `messages`.

    Text by default: the prompt is one of Alpaca's two. Messages where the row has columns for what
    that text has no place for: earlier turns (`history`), a system message (`system`), or responses
    that are messages themselves.

    Args:
        columns: under our names.
        as_chat: messages in any case.

    Raises:
        Malformed: a column is not what the shape has there.
    """
    replies = [name for name in ("output", "chosen") if columns.get(name) is not None]
    if columns.get("instruction") is None or columns.get("prompt") is not None or not replies:
        return {}
    if not (as_chat or _needs_messages(columns)):
        found = {"prompt": made(_prompt(columns), "instruction", "input")}
        if replies[0] == "output":
            found["completion"] = made(columns["output"], "output")
        return found
    turns = [*_earlier(columns), {"role": "user", "content": _request(columns)}]
    asked = behind_system(columns, turns, "instruction", "input", "history", "system")
    if replies[0] == "chosen":
        return {"prompt": asked}
    return {"messages": made([*asked.value, _reply(columns["output"])], *asked.sources, "output")}


def _needs_messages(columns: Columns) -> bool:
    listed = any(isinstance(columns.get(name), list) for name in ("chosen", "rejected"))
    return listed or any(columns.get(name) is not None for name in ("history", "system"))


def _prompt(columns: Columns) -> str:
    asked, given = _texts(columns)
    template = ALPACA_WITH_INPUT if given else ALPACA
    return template.format(instruction=asked, input=given)


def _request(columns: Columns) -> str:
    asked, given = _texts(columns)
    return f"{asked}\n\n{given}" if given else asked


def _texts(columns: Columns) -> tuple[str, str]:
    given = columns.get("input")
    asked = fields.text("instruction", columns["instruction"])
    return asked, fields.text("input", "" if given is None else given)


def _earlier(columns: Columns) -> list[dict[str, Any]]:
    """Messages of LLaMA-Factory's `history`: a list of `[question, answer]`."""
    pairs = columns.get("history") or []
    if not isinstance(pairs, list):
        raise Malformed(f"history: got {show_value(pairs)}; need a list of [question, answer]")
    turns = []
    for i, pair in enumerate(pairs):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Malformed(f"history[{i}]: got {show_value(pair)}; need [question, answer]")
        turns += [{"role": "user", "content": pair[0]}, _reply(pair[1])]
    return turns


def _reply(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


_COLUMNS = ("history", "human_ref_A", "human_ref_B", "labels")


def comments(columns: Columns) -> MadeColumns:
    """The post as the user's message; `labels` is 1 where comment A is preferred, 0 for B.

    Raises:
        Malformed: the label is neither.
    """
    if any(columns.get(name) is None for name in _COLUMNS):
        return {}
    first = fields.flag("labels", columns["labels"])
    names = ("human_ref_A", "human_ref_B") if first else ("human_ref_B", "human_ref_A")
    post = [{"role": "user", "content": columns["history"]}]
    return {
        "prompt": made(post, "history"),
        "chosen": made(columns[names[0]], *_COLUMNS),
        "rejected": made(columns[names[1]], *_COLUMNS),
    }


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

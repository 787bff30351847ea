"""A row in any shape that is known here, under our columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_cli.data.records.shapes.alpaca import instruction
from rlhf_cli.data.records.shapes.last_turn import NOTE, end_with_assistant
from rlhf_cli.data.records.shapes.listed_text import read_lists
from rlhf_cli.data.records.shapes.made import Columns, MadeColumns
from rlhf_cli.data.records.shapes.sharegpt import conversation, read_messages
from rlhf_cli.data.records.shapes.shp import comments
from rlhf_cli.data.records.shapes.whole_chats import (
    as_conversation,
    judged_reply,
    kto_label,
    messages_as_prompt,
)

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

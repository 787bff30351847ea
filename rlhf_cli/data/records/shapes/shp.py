"""Stanford Human Preferences (Ethayarajh et al. 2022): a post and two comments on it."""

from __future__ import annotations

from rlhf_cli.data.records import fields
from rlhf_cli.data.records.shapes.made import Columns, MadeColumns, made

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

"""Rows of an instruction, its input and a response: Stanford Alpaca's and LLaMA-Factory's."""

from __future__ import annotations

from typing import Any

from rlhf_cli.data.reading.raw import show_value
from rlhf_cli.data.records import fields
from rlhf_cli.data.records.row_errors import Malformed
from rlhf_cli.data.records.shapes.made import Columns, MadeColumns, made
from rlhf_cli.data.records.shapes.sharegpt import behind_system

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

"""Shapes of row that others made common, brought into ours: Alpaca's and ShareGPT's."""

from __future__ import annotations

import json
from typing import Any

from rlhf_cli.data.reading.raw import show_value
from rlhf_cli.data.records import fields
from rlhf_cli.data.records.row_errors import Malformed

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

SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}

READS = {
    "messages": {"conversations", "instruction", "input", "output", "prompt", "completion"},
    "prompt": {"instruction", "input"},
    "completion": {"output"},
}
"""Our column -> the columns that it may be made of here."""


def adapt(columns: dict[str, Any], *, as_chat: bool) -> dict[str, Any]:
    """The row with our columns added, where it has one of these shapes.

    Args:
        columns: under our names where `data.columns` says so.
        as_chat: make messages of a prompt and what follows it (`data.format=chat`).

    Raises:
        Malformed: the shape is one of these, but a value is not.
    """
    if "messages" in columns:
        return columns
    if "conversations" in columns:
        return {**columns, "messages": _said(columns["conversations"])}
    alpaca = {"instruction", "output"} <= set(columns) and "prompt" not in columns
    if alpaca and as_chat:
        return {**columns, "messages": _chat(_request(columns), columns["output"])}
    if alpaca and "completion" not in columns:
        return {**columns, "prompt": _alpaca_prompt(columns), "completion": columns["output"]}
    if as_chat and {"prompt", "completion"} <= set(columns):
        return {**columns, "messages": _chat(columns["prompt"], columns["completion"])}
    return columns


def from_text(columns: dict[str, Any]) -> dict[str, Any]:
    """Columns of a `.csv`, where all is text: those of another type are read as JSON.

    Raises:
        Malformed: they are none.
    """
    typed = {}
    for name in ("margin", "score", "responses", "scores", "messages", "conversations"):
        value = columns.get(name)
        if isinstance(value, str):
            typed[name] = _json(name, value)
    return {**columns, **typed}


def _json(name: str, text: str) -> Any:
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        got = show_value(text)
        needed = "a number" if name in ("margin", "score") else "JSON in this column"
        raise Malformed(f"{name}: got {got}; need {needed}") from None


def _said(value: Any) -> Any:
    """ShareGPT's `from` and `value` as `role` and `content`; what is neither stays as it is."""
    return [_message(item) for item in value] if isinstance(value, list) else value


def _message(item: Any) -> Any:
    if not isinstance(item, dict) or not {"from", "value"} <= set(item):
        return item
    speaker = item["from"]
    role = SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker
    return {"role": role, "content": item["value"]}


def _alpaca_prompt(columns: dict[str, Any]) -> str:
    instruction, given = _instruction(columns)
    template = ALPACA_WITH_INPUT if given else ALPACA
    return template.format(instruction=instruction, input=given)


def _request(columns: dict[str, Any]) -> str:
    instruction, given = _instruction(columns)
    return f"{instruction}\n\n{given}" if given else instruction


def _instruction(columns: dict[str, Any]) -> tuple[str, str]:
    given = columns.get("input")
    instruction = fields.text("instruction", columns["instruction"])
    return instruction, fields.text("input", "" if given is None else given)


def _chat(prompt: Any, response: Any) -> Any:
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    said = [{"role": "assistant", "content": response}] if isinstance(response, str) else response
    if not isinstance(asked, list) or not isinstance(said, list):
        raise Malformed("prompt, completion: need text or a list of messages")
    return [*asked, *said]

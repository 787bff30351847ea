"""Adapters from known data layouts to our columns: ShareGPT, Alpaca, SHP, and others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from rlhf_cli.data.records import fields
from rlhf_cli.data.records.normalize import (
    TRAILING_TURNS_NOTE,
    Columns,
    drop_nulls,
    drop_trailing_turns,
    normalize_message_columns,
    parse_list_columns,
)
from rlhf_cli.data.report import MalformedRow
from rlhf_cli.data.sources.base import describe_value

LAYOUT_COLUMNS = (
    *("conversations", "instruction", "input", "output", "history", "system", "kto_tag"),
    *("human_ref_A", "human_ref_B", "labels", "completions"),
)
"""Columns of other layouts that are read here; `data.columns` can name them too."""


class DerivedValue(NamedTuple):
    """A value for one of our columns, and the names of the row's columns it was derived from."""

    value: Any
    inputs: frozenset[str]


DerivedColumns = dict[str, DerivedValue]
"""Our column -> its value; empty if the row does not have the layout."""


def derive(value: Any, *inputs: str) -> DerivedValue:
    """Return a value with the names of the columns it was derived from."""
    return DerivedValue(value, frozenset(inputs))


@dataclass(frozen=True)
class AdaptedRow:
    """A row under our columns.

    Attributes:
        columns: our columns and the row's own, without nulls.
        inputs: our column -> the row's columns it was derived from, for derived columns.
        notes: changes to the row, for the report.
    """

    columns: dict[str, Any]
    inputs: dict[str, frozenset[str]]
    notes: tuple[str, ...] = ()


def adapt_row(columns: Columns, *, as_chat: bool, untyped: bool = False) -> AdaptedRow:
    """Bring a row of any known layout under our columns.

    Args:
        columns: columns, renamed by `data.columns`.
        as_chat: make messages of a prompt and what follows it.
        untyped: all values are text, as in a `.csv`.

    Raises:
        MalformedRow: the row has a known layout, but one of its values does not fit.
        RefusedRow: a text column holds messages.
    """
    found = drop_nulls(parse_list_columns(columns, untyped=untyped))
    found, cut = drop_trailing_turns(normalize_message_columns(found))
    row = AdaptedRow(found, {}, (TRAILING_TURNS_NOTE,) if cut else ())
    for layout in (adapt_kto_tag, adapt_shp, adapt_ultrafeedback, adapt_sharegpt):
        row = _add_columns(row, layout(row.columns))
    row = _add_columns(row, adapt_alpaca(row.columns, as_chat=as_chat))
    for layout in (adapt_messages_with_responses, adapt_scored_messages):
        row = _add_columns(row, layout(row.columns))
    return _add_columns(row, adapt_prompt_completion(row.columns)) if as_chat else row


def _add_columns(row: AdaptedRow, derived: DerivedColumns) -> AdaptedRow:
    """Add derived columns to a row; columns that it already has are kept."""
    if not derived:  # most rows have our layout
        return row
    new = {name: item for name, item in derived.items() if name not in row.columns}
    inputs = {
        name: frozenset().union(*(row.inputs.get(column, {column}) for column in item.inputs))
        for name, item in new.items()
    }
    values = {name: item.value for name, item in new.items()}
    return AdaptedRow({**row.columns, **values}, {**row.inputs, **inputs}, row.notes)


def adapt_sharegpt(columns: Columns) -> DerivedColumns:
    """ShareGPT: derive `messages` from `conversations`, after the text of `system`."""
    turns = columns.get("conversations")
    return {} if turns is None else {"messages": _prepend_system(columns, turns, "conversations")}


def _prepend_system(columns: Columns, turns: Any, *inputs: str) -> DerivedValue:
    """Put the text of the column `system` before messages that have no system message.

    Args:
        columns: columns of the row.
        turns: messages, not yet checked.
        inputs: columns that these were derived from.
    """
    system = columns.get("system")
    if not isinstance(turns, list) or not isinstance(system, str) or not system.strip():
        return derive(turns, *inputs)
    first = turns[0] if turns else None
    if isinstance(first, dict) and first.get("role") in ("system", "developer"):
        return derive(turns, *inputs)
    return derive([{"role": "system", "content": system}, *turns], *inputs, "system")


# The two prompts of Taori et al. 2023 (github.com/tatsu-lab/stanford_alpaca, train.py).
ALPACA_PROMPT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
ALPACA_PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)


def adapt_alpaca(columns: Columns, *, as_chat: bool) -> DerivedColumns:
    """Alpaca and LLaMA-Factory: derive a prompt and completion, or `messages`.

    By default the prompt is the text of one of Alpaca's two prompts. Messages are made where the
    row has columns that this text does not include: earlier turns (`history`), a system message
    (`system`), or responses that are messages.

    Args:
        columns: columns under our names.
        as_chat: make messages in any case.

    Raises:
        MalformedRow: a column does not have the type of this layout.
    """
    responses = [name for name in ("output", "chosen") if columns.get(name) is not None]
    has_prompt = columns.get("prompt") is not None
    if columns.get("instruction") is None or has_prompt or not responses:
        return {}
    if not (as_chat or _needs_messages(columns)):
        found = {"prompt": derive(_alpaca_prompt(columns), "instruction", "input")}
        if responses[0] == "output":
            found["completion"] = derive(columns["output"], "output")
        return found
    turns = [*_history_messages(columns), {"role": "user", "content": _user_message(columns)}]
    prompt = _prepend_system(columns, turns, "instruction", "input", "history", "system")
    if responses[0] == "chosen":
        return {"prompt": prompt}
    messages = [*prompt.value, _assistant(columns["output"])]
    return {"messages": derive(messages, *prompt.inputs, "output")}


def _needs_messages(columns: Columns) -> bool:
    listed = any(isinstance(columns.get(name), list) for name in ("chosen", "rejected"))
    return listed or any(columns.get(name) is not None for name in ("history", "system"))


def _alpaca_prompt(columns: Columns) -> str:
    instruction, given = _instruction_and_input(columns)
    template = ALPACA_PROMPT_WITH_INPUT if given else ALPACA_PROMPT
    return template.format(instruction=instruction, input=given)


def _user_message(columns: Columns) -> str:
    instruction, given = _instruction_and_input(columns)
    return f"{instruction}\n\n{given}" if given else instruction


def _instruction_and_input(columns: Columns) -> tuple[str, str]:
    given = columns.get("input")
    instruction = fields.parse_text("instruction", columns["instruction"])
    return instruction, fields.parse_text("input", "" if given is None else given)


def _history_messages(columns: Columns) -> list[dict[str, Any]]:
    """Messages of LLaMA-Factory's `history`, a list of `[question, answer]`."""
    pairs = columns.get("history") or []
    if not isinstance(pairs, list):
        raise MalformedRow(
            f"history: got {describe_value(pairs)}; need a list of [question, answer]"
        )
    turns = []
    for i, pair in enumerate(pairs):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise MalformedRow(f"history[{i}]: got {describe_value(pair)}; need [question, answer]")
        turns += [{"role": "user", "content": pair[0]}, _assistant(pair[1])]
    return turns


def _assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


_SHP_COLUMNS = ("history", "human_ref_A", "human_ref_B", "labels")


def adapt_shp(columns: Columns) -> DerivedColumns:
    """Stanford Human Preferences (Ethayarajh et al. 2022): a post and two comments on it.

    The post becomes the user's message. `labels` is 1 if comment A is preferred, 0 if comment B.

    Raises:
        MalformedRow: the label is neither.
    """
    if any(columns.get(name) is None for name in _SHP_COLUMNS):
        return {}
    prefers_a = fields.parse_bool("labels", columns["labels"])
    chosen, rejected = ("human_ref_A", "human_ref_B")[:: 1 if prefers_a else -1]
    post = [{"role": "user", "content": columns["history"]}]
    return {
        "prompt": derive(post, "history"),
        "chosen": derive(columns[chosen], *_SHP_COLUMNS),
        "rejected": derive(columns[rejected], *_SHP_COLUMNS),
    }


_RATING_KEYS = ("overall_score", "fine-grained_score", "fine_grained_score", "score", "rating")


def adapt_ultrafeedback(columns: Columns) -> DerivedColumns:
    """UltraFeedback (Cui et al. 2023): an instruction and several rated completions.

    The instruction becomes the user's message. The score of a completion is its overall score, or
    the mean of its ratings.

    Raises:
        MalformedRow: a completion is no object with a response and a rating.
    """
    listed, instruction = columns.get("completions"), columns.get("instruction")
    if not isinstance(listed, list) or instruction is None:
        return {}
    names = [f"completions[{i}]" for i in range(len(listed))]
    responses = [_rated_response(name, item) for name, item in zip(names, listed, strict=True)]
    prompt = [{"role": "user", "content": fields.parse_text("instruction", instruction)}]
    return {
        "prompt": derive(prompt, "instruction"),
        "responses": derive([text for text, _ in responses], "completions"),
        "scores": derive([score for _, score in responses], "completions"),
    }


def _rated_response(name: str, item: Any) -> tuple[str, float]:
    if not isinstance(item, dict) or "response" not in item:
        raise MalformedRow(f"{name}: got {describe_value(item)}; need an object with response")
    text = fields.parse_text(f"{name}.response", item["response"])
    overall = [_to_number(item.get(key)) for key in _RATING_KEYS]
    annotations = item.get("annotations")
    rated = annotations.values() if isinstance(annotations, dict) else ()
    single = [_to_number(one.get("Rating")) for one in rated if isinstance(one, dict)]
    numbers = [number for number in single if number is not None]
    mean = sum(numbers) / len(numbers) if numbers else None
    for score in (*overall, mean):
        if score is not None:
            return text, score
    raise MalformedRow(f"{name}: no rating; need one of {', '.join(_RATING_KEYS)}")


def _to_number(value: Any) -> float | None:
    """Return a finite number, also of text; None for `N/A`, which stands where no rating is."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def adapt_kto_tag(columns: Columns) -> DerivedColumns:
    """LLaMA-Factory: derive `label` from `kto_tag`."""
    tag = columns.get("kto_tag")
    if tag is None or columns.get("label") is not None:
        return {}
    return {"label": derive(tag, "kto_tag")}


def adapt_messages_with_responses(columns: Columns) -> DerivedColumns:
    """Derive `prompt` from `messages` without a reply, beside columns with responses."""
    turns = columns.get("messages")
    responses = ("chosen", "responses", "completion")
    answered = any(columns.get(name) is not None for name in responses)
    if not answered or columns.get("prompt") is not None or _last_role(turns) in ("", "assistant"):
        return {}
    return {"prompt": derive(turns, "messages")}


def adapt_scored_messages(columns: Columns) -> DerivedColumns:
    """Derive `prompt` and `completion` from `messages` whose last reply has a label or score."""
    turns = columns.get("messages")
    scored = any(columns.get(name) is not None for name in ("label", "score"))
    others = any(columns.get(name) is not None for name in ("prompt", "completion"))
    if not scored or others or _last_role(turns) != "assistant" or len(turns or ()) < 2:
        return {}
    assert isinstance(turns, list)  # it has a last role
    return {"prompt": derive(turns[:-1], "messages"), "completion": derive(turns[-1:], "messages")}


def adapt_prompt_completion(columns: Columns) -> DerivedColumns:
    """Derive `messages` from a prompt and its completion, for `data.format=chat`.

    Raises:
        MalformedRow: one of them is neither text nor messages.
    """
    prompt, completion = columns.get("prompt"), columns.get("completion")
    if prompt is None or completion is None or columns.get("messages") is not None:
        return {}
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    reply = [_assistant(completion)] if isinstance(completion, str) else completion
    if not isinstance(asked, list) or not isinstance(reply, list):
        raise MalformedRow("prompt, completion: need text or a list of messages")
    repeats_prompt = reply[: len(asked)] == asked and len(reply) > len(asked)
    messages = reply if repeats_prompt else [*asked, *reply]
    return {"messages": derive(messages, "prompt", "completion")}


def _last_role(turns: Any) -> str:
    """Return the role of the last message; empty if there is none."""
    last = turns[-1] if isinstance(turns, list) and turns else None
    role = last.get("role") if isinstance(last, dict) else None
    return role if isinstance(role, str) else ""

"""Layouts of rows: our columns, and those of TRL, Alpaca, ShareGPT and LLaMA-Factory."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf_cli.data.config import Format
from rlhf_cli.data.records.adapters import ALPACA_PROMPT, ALPACA_PROMPT_WITH_INPUT
from rlhf_cli.data.records.fields import Message, Messages, prompt_to_json
from rlhf_cli.data.records.types import (
    ChatRecord,
    LabelledRecord,
    PreferenceRecord,
    PromptCompletionRecord,
    PromptRecord,
    RankedRecord,
    Record,
    ScoredRecord,
    TextRecord,
)
from rlhf_cli.data.report import RefusedRow
from rlhf_cli.data.tokens.format import to_chat_record

MARGIN_NOTE = "margins are left out: the layout has no column for them"

MESSAGES_NOTE = "prompts and responses that are text became the user's and the assistant's messages"


@dataclass(frozen=True)
class WrittenRow:
    """A record in a layout.

    Attributes:
        columns: columns of the row.
        record: what the row says: the record itself, or what the layout made of it.
        format: value of `data.format` with which the row is read as that.
        notes: what was left out or changed.
    """

    columns: dict[str, Any]
    record: Record
    format: Format = "auto"
    notes: tuple[str, ...] = ()


def to_records(record: Record) -> WrittenRow:
    """Write a record under our columns."""
    columns = _own_columns(record)
    tools = _take_tools(columns)
    return WrittenRow({**columns, **({"tools": tools} if tools else {})}, record)


def _own_columns(record: Record) -> dict[str, Any]:
    match record:
        case TextRecord(text):
            return {"text": text}
        case ChatRecord(messages):
            return {"messages": prompt_to_json(messages)}
        case PromptRecord(prompt):
            return {"prompt": prompt_to_json(prompt)}
        case RankedRecord(prompt, responses, scores):
            listed = [prompt_to_json(response) for response in responses]
            return {"prompt": prompt_to_json(prompt), "responses": listed, "scores": list(scores)}
        case PreferenceRecord(prompt, chosen, rejected, margin):
            found = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            extra = {} if margin is None else {"margin": margin}
            return {name: prompt_to_json(value) for name, value in found.items()} | extra
        case LabelledRecord("", str() as text, label):
            return {"text": text, "label": label}
        case ScoredRecord("", str() as text, score):
            return {"text": text, "score": score}
    pair = {"prompt": prompt_to_json(record.prompt)}
    pair["completion"] = prompt_to_json(record.completion)
    match record:
        case LabelledRecord(label=label):
            return {**pair, "label": label}
        case ScoredRecord(score=score):
            return {**pair, "score": score}
    return pair


def _take_tools(columns: dict[str, Any]) -> list[Any]:
    """Take the tools out of the first message, because other programs have them as a column."""
    for name in ("messages", "prompt"):
        turns = columns.get(name)
        if isinstance(turns, list) and turns and "tools" in turns[0]:
            columns[name] = [{k: v for k, v in turns[0].items() if k != "tools"}, *turns[1:]]
            found: list[Any] = turns[0]["tools"]
            return found
    return []


def to_trl(record: Record) -> WrittenRow:
    """Write a record as TRL's data set formats have it.

    Raises:
        RefusedRow: TRL has no format for it.
    """
    if isinstance(record, RankedRecord):
        raise RefusedRow("a ranking, for which the layout has no columns (pairs=all makes pairs)")
    if isinstance(record, ScoredRecord):
        raise RefusedRow("a score, for which the layout has no column")
    if any(message.weight != 1 for message in _messages_of(record)):
        raise RefusedRow("a message of weight 0, which the layout does not have")
    return to_records(record)


def to_sharegpt(record: Record) -> WrittenRow:
    """Write a record as ShareGPT's `conversations`, with LLaMA-Factory's columns for preferences.

    Raises:
        RefusedRow: the layout has no columns for it.
    """
    if isinstance(record, TextRecord):
        return to_records(record)
    chat, notes = _to_plain_chat(record)
    match chat:
        case ChatRecord(messages):
            columns: dict[str, Any] = {"conversations": _conversation(messages)}
        case PreferenceRecord(prompt, chosen, rejected):
            columns = {"conversations": _conversation(prompt)}
            columns["chosen"] = _turn(_only_reply(chosen))
            columns["rejected"] = _turn(_only_reply(rejected))
        case LabelledRecord(prompt, completion, label):
            columns = {"conversations": _conversation((*prompt, _only_reply(completion)))}
            columns["kto_tag"] = label
        case _:
            raise RefusedRow("a record for which the layout has no columns")
    tools = _messages_of(chat)[0].tools
    columns |= {"tools": json.dumps(list(tools), ensure_ascii=False)} if tools else {}
    return WrittenRow(columns, chat, notes=notes)


_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def _conversation(messages: Any) -> list[dict[str, str]]:
    return [_turn(message) for message in messages]


def _turn(message: Message) -> dict[str, str]:
    return {"from": _SPEAKERS[message.role], "value": message.content}


def to_llama_factory(record: Record) -> WrittenRow:
    """Write a record under LLaMA-Factory's Alpaca columns, with `system` and `history`.

    Raises:
        RefusedRow: the layout has no columns for it.
    """
    if isinstance(record, TextRecord):
        return to_records(record)
    chat, notes = _to_plain_chat(record)
    match chat:
        case ChatRecord(messages):
            columns = {**_asked(messages[:-1]), "output": _only_reply(messages[-1:]).content}
        case PreferenceRecord(prompt, chosen, rejected):
            columns = _asked(prompt)
            columns["chosen"] = _only_reply(chosen).content
            columns["rejected"] = _only_reply(rejected).content
        case LabelledRecord(prompt, completion, label):
            columns = {**_asked(prompt), "output": _only_reply(completion).content}
            columns["kto_tag"] = label
        case _:
            raise RefusedRow("a record for which the layout has no columns")
    if _messages_of(chat)[0].tools:
        raise RefusedRow("tools, for which the layout has no column (to=sharegpt has one)")
    return WrittenRow(columns, chat, notes=notes)


def _asked(prompt: Any) -> dict[str, Any]:
    """Columns of a prompt: `instruction`, and the turns before it."""
    system, turns = "", list(prompt)
    if turns and turns[0].role == "system":
        system = turns.pop(0).content
    roles = [turn.role for turn in turns]
    if roles != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise RefusedRow("turns that are not the user's and the assistant's by turns")
    history = [[turns[i].content, turns[i + 1].content] for i in range(0, len(turns) - 1, 2)]
    return {"instruction": turns[-1].content, "input": "", "system": system, "history": history}


def to_alpaca(record: Record) -> WrittenRow:
    """Write a record as Alpaca's `instruction`, `input` and `output`.

    A prompt that is one of Alpaca's two templates is taken apart again.

    Raises:
        RefusedRow: the layout has no columns for it.
    """
    match record:
        case PromptCompletionRecord(str() as prompt, str() as completion):
            for pattern in _ALPACA_PATTERNS:
                if found := pattern.fullmatch(prompt):
                    parts = {"instruction": "", "input": "", **found.groupdict()}
                    return WrittenRow({**parts, "output": completion}, record)
    written = to_llama_factory(record)
    columns, turns = written.columns, _messages_of(written.record)
    if "instruction" not in columns or not isinstance(written.record, ChatRecord):
        raise RefusedRow("a record for which the layout has no columns (to=llama_factory has)")
    if len(turns) > 2:
        raise RefusedRow("several turns or a system message (to=llama_factory has columns)")
    plain = {name: columns[name] for name in ("instruction", "input", "output")}
    return replace(written, columns=plain, format="chat")


def _template_pattern(template: str) -> re.Pattern[str]:
    pattern = re.escape(template)
    for name in ("instruction", "input"):
        pattern = pattern.replace(re.escape(f"{{{name}}}"), f"(?P<{name}>.*)")
    return re.compile(pattern, re.DOTALL)


_ALPACA_PATTERNS = tuple(map(_template_pattern, (ALPACA_PROMPT_WITH_INPUT, ALPACA_PROMPT)))


def _to_plain_chat(record: Record) -> tuple[Record, tuple[str, ...]]:
    """Return a record as messages of plain text, without a margin, and notes on the changes.

    Raises:
        RefusedRow: it has parts that are no plain text, or it is a transcript.
    """
    if isinstance(record, RankedRecord):
        raise RefusedRow("a ranking, for which the layout has no columns (pairs=all makes pairs)")
    if isinstance(record, LabelledRecord | ScoredRecord) and record.prompt == "":
        raise RefusedRow("a text without a prompt, for which the layout has no columns")
    try:
        chat = to_chat_record(record)
    except RefusedRow as error:
        reason = str(error).partition(",")[0]
        raise RefusedRow(f"{reason} (transcripts=messages makes messages of it)") from None
    if isinstance(chat, PromptCompletionRecord):
        assert isinstance(chat.prompt, tuple)  # messages now
        assert isinstance(chat.completion, tuple)
        chat = ChatRecord(chat.prompt + chat.completion)
    for message in _messages_of(chat):
        if message.extra:
            keys = ", ".join(sorted(message.extra))
            raise RefusedRow(f"messages with {keys}, which the layout does not have")
        if message.weight != 1:
            raise RefusedRow("a message of weight 0, which the layout does not have")
    notes = [MESSAGES_NOTE] if isinstance(getattr(record, "prompt", None), str) else []
    if isinstance(chat, PreferenceRecord) and chat.margin is not None:
        return replace(chat, margin=None), (*notes, MARGIN_NOTE)
    return chat, tuple(notes)


def _only_reply(response: Any) -> Message:
    if len(response) != 1 or response[0].role != "assistant":
        raise RefusedRow("a response of several turns, which the layout does not have")
    reply: Message = response[0]
    return reply


def _messages_of(record: Record) -> Messages:
    """All messages of a record, of its prompt and responses; none of a text record."""
    names = ("messages", "prompt", "completion", "chosen", "rejected")
    found: list[Message] = []
    for name in names:
        value: Sequence[Any] = getattr(record, name, ())
        found += value if isinstance(value, tuple) else ()
    for response in getattr(record, "responses", ()):
        found += response if isinstance(response, tuple) else ()
    return tuple(found)


LAYOUTS: dict[str, Callable[[Record], WrittenRow]] = {
    "records": to_records,
    "trl": to_trl,
    "alpaca": to_alpaca,
    "sharegpt": to_sharegpt,
    "llama_factory": to_llama_factory,
}
"""Value of `to` -> function that writes a record."""

SOURCES: dict[str, tuple[tuple[str, ...], ...]] = {
    "auto": ((),),
    "records": ((),),
    "trl": (("messages",), ("prompt",), ("chosen", "rejected"), ("text",)),
    "alpaca": (("instruction", "output"),),
    "sharegpt": (("conversations",),),
    "llama_factory": (("instruction",), ("conversations",)),
    "hh": (("chosen", "rejected"),),
    "oasst": (("message_id", "parent_id"), ("prompt", "message_tree_id")),
    "shp": (("history", "human_ref_A", "human_ref_B", "labels"),),
    "ultrafeedback": (("instruction", "completions"),),
}
"""Value of `from` -> columns that its rows have; one of several sets."""

"""Record classes: the checked content of a row, which all later steps trust."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from typing import Any

import numpy as np

from rlhf_cli.data.records import fields
from rlhf_cli.data.records.fields import Messages, Prompt, Response
from rlhf_cli.data.records.responses import (
    move_shared_turns_to_prompt,
    split_prompt_and_responses,
    split_transcripts,
)
from rlhf_cli.data.report import MalformedRow, RefusedRow

Columns = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TextRecord:
    """A document."""

    text: str


@dataclass(frozen=True, slots=True)
class PromptCompletionRecord:
    """A prompt and the completion to learn."""

    prompt: Prompt
    completion: Response


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """A conversation with at least one assistant message."""

    messages: Messages


@dataclass(frozen=True, slots=True)
class PreferenceRecord:
    """A preference pair; `margin` is the difference of the scores, if known."""

    prompt: Prompt
    chosen: Response
    rejected: Response
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class RankedRecord:
    """Several responses to one prompt, each with a score; higher is better."""

    prompt: Prompt
    responses: tuple[Response, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LabelledRecord:
    """A response with a label: True is desirable, False undesirable."""

    prompt: Prompt
    completion: Response
    label: bool


@dataclass(frozen=True, slots=True)
class ScoredRecord:
    """A response with a score; higher is better."""

    prompt: Prompt
    completion: Response
    score: float


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """A prompt without a response."""

    prompt: Prompt


Record = (
    TextRecord
    | PromptCompletionRecord
    | ChatRecord
    | PreferenceRecord
    | RankedRecord
    | LabelledRecord
    | ScoredRecord
    | PromptRecord
)


def is_chat(record: Record) -> bool:
    """Whether the record has messages, which are rendered by a chat template."""
    values = (getattr(record, part.name) for part in dataclass_fields(record))
    return any(
        isinstance(v, tuple) and bool(v) and isinstance(v[0], fields.Message) for v in values
    )


def response_scores(record: Record) -> tuple[float, ...] | None:
    """Return the score of each response of a preference record; None for other records.

    Scores are kept as they are; a label becomes 1 or 0, and a pair's margin the chosen score.
    """
    match record:
        case PreferenceRecord(margin=margin):
            return (margin or 0.0, 0.0)
        case RankedRecord(scores=scores):
            return scores
        case LabelledRecord(label=label):
            return (float(label),)
        case ScoredRecord(score=score):
            return (score,)
    return None


def _build_text(columns: Columns) -> TextRecord:
    text = fields.parse_text("text", columns["text"])
    if not text.strip():
        raise RefusedRow("empty text")
    return TextRecord(text)


def _build_chat(columns: Columns) -> ChatRecord:
    messages = fields.parse_messages("messages", columns["messages"])
    return ChatRecord(fields.require_assistant_message(messages))


def _build_prompt_completion(columns: Columns) -> PromptCompletionRecord:
    responses = {"completion": columns["completion"]}
    prompt, [completion] = split_prompt_and_responses(columns["prompt"], responses)
    return PromptCompletionRecord(prompt, completion)


def _build_preference(columns: Columns) -> PreferenceRecord:
    margin = columns.get("margin")
    margin = None if margin is None else fields.parse_number("margin", margin)
    prompt, chosen, rejected = _split_pair(columns)
    if chosen == rejected:
        raise RefusedRow("chosen equals rejected")
    return PreferenceRecord(prompt, chosen, rejected, margin)


def _split_pair(columns: Columns) -> tuple[Prompt, Response, Response]:
    responses = {name: columns[name] for name in ("chosen", "rejected")}
    if "prompt" in columns:
        prompt, [chosen, rejected] = split_prompt_and_responses(columns["prompt"], responses)
        return move_shared_turns_to_prompt(prompt, chosen, rejected)
    first, second = (fields.parse_prompt(name, value) for name, value in responses.items())
    return split_transcripts(first, second)


def _build_ranked(columns: Columns) -> RankedRecord:
    listed = fields.parse_list("responses", columns["responses"])
    listed_scores = fields.parse_list("scores", columns["scores"])
    if len(listed) != len(listed_scores):
        counts = f"{len(listed)} responses and {len(listed_scores)} scores"
        raise MalformedRow(f"scores: got {counts}; need as many")
    named = {f"responses[{i}]": response for i, response in enumerate(listed)}
    prompt, responses = split_prompt_and_responses(columns["prompt"], named)
    scores = tuple(
        fields.parse_number(f"scores[{i}]", score) for i, score in enumerate(listed_scores)
    )
    if len(scores) == 1:
        raise RefusedRow("only one response")
    if len({*map(np.float32, scores)}) == 1:  # smaller differences are ties for the loss
        raise RefusedRow("all scores are equal")
    return RankedRecord(prompt, tuple(responses), scores)


def _build_labelled(columns: Columns) -> LabelledRecord:
    pair, label = _build_prompt_completion(columns), columns["label"]
    return LabelledRecord(pair.prompt, pair.completion, fields.parse_bool("label", label))


def _build_labelled_text(columns: Columns) -> LabelledRecord:
    text, label = _build_text(columns).text, columns["label"]
    return LabelledRecord("", text, fields.parse_bool("label", label))


def _build_scored(columns: Columns) -> ScoredRecord:
    pair, score = _build_prompt_completion(columns), columns["score"]
    return ScoredRecord(pair.prompt, pair.completion, fields.parse_number("score", score))


def _build_scored_text(columns: Columns) -> ScoredRecord:
    text, score = _build_text(columns).text, columns["score"]
    return ScoredRecord("", text, fields.parse_number("score", score))


def _build_prompt(columns: Columns) -> PromptRecord:
    return PromptRecord(fields.parse_prompt("prompt", columns["prompt"]))


def _build_chat_prompt(columns: Columns) -> PromptRecord:
    messages = fields.parse_messages("messages", columns["messages"])
    prompt = messages[:-1] if messages[-1].role == "assistant" else messages
    if not prompt:
        raise RefusedRow("no message before the assistant's")
    return PromptRecord(prompt)


@dataclass(frozen=True)
class RecordKind:
    """A value of `data.format`: its columns, and the function that builds its record.

    Attributes:
        name: value of `data.format`.
        record: record class.
        required: columns that a row must have.
        build: builds the record from the columns.
        optional: columns that a row may have.
        extends: kind that the same row also fits, if it ignores some columns.
    """

    name: str
    record: type[Any]
    required: tuple[str, ...]
    build: Callable[[Columns], Record]
    optional: tuple[str, ...] = ()
    extends: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """All required and optional columns."""
        return self.required + self.optional

    def parse(self, columns: Columns) -> Record:
        """Build the record of a row.

        Raises:
            MalformedRow: a column is missing or has the wrong type.
            RefusedRow: the row cannot be trained on.
        """
        present = {name: value for name, value in columns.items() if value is not None}
        missing = [name for name in self.required if name not in present]
        if missing:
            found = ", ".join(present) or "none"
            nulls = ", ".join(
                name for name in self.columns if name in columns.keys() - present.keys()
            )
            null = f"; null: {nulls}" if nulls else ""
            raise MalformedRow(
                f"no column {', '.join(missing)}; found {found}{null}. See rlhf docs data"
            )
        return _add_tools(self.build(present), present)


def _add_tools(record: Record, columns: Columns) -> Record:
    """Add the row's `tools` to the first message; a text prompt has none."""
    tools = fields.parse_tools("tools", columns.get("tools"))
    name = "messages" if isinstance(record, ChatRecord) else "prompt"
    as_any: Any = record
    messages = getattr(record, name, "")
    if not tools or isinstance(messages, str):
        return record
    first, *rest = messages
    changed: Record = replace(as_any, **{name: (replace(first, tools=tools), *rest)})
    return changed


KINDS = (
    RecordKind("chat", ChatRecord, ("messages",), _build_chat),
    RecordKind(
        "preference",
        PreferenceRecord,
        ("chosen", "rejected"),
        _build_preference,
        ("prompt", "margin"),
    ),
    RecordKind("ranked", RankedRecord, ("prompt", "responses", "scores"), _build_ranked),
    RecordKind("labelled", LabelledRecord, ("prompt", "completion", "label"), _build_labelled),
    RecordKind("scored", ScoredRecord, ("prompt", "completion", "score"), _build_scored),
    RecordKind(
        "labelled_text", LabelledRecord, ("text", "label"), _build_labelled_text, extends="text"
    ),
    RecordKind("scored_text", ScoredRecord, ("text", "score"), _build_scored_text, extends="text"),
    RecordKind(
        "prompt_completion",
        PromptCompletionRecord,
        ("prompt", "completion"),
        _build_prompt_completion,
    ),
    RecordKind("text", TextRecord, ("text",), _build_text),
    RecordKind("prompt", PromptRecord, ("prompt",), _build_prompt),
    RecordKind("chat_prompt", PromptRecord, ("messages",), _build_chat_prompt),
)
ANY_RECORDS = (
    PreferenceRecord,
    RankedRecord,
    LabelledRecord,
    ScoredRecord,
    ChatRecord,
    PromptCompletionRecord,
    TextRecord,
    PromptRecord,
)
"""All record classes; a row that fits several kinds is read as the first."""

COLUMNS = (*dict.fromkeys(name for kind in KINDS for name in kind.columns), "tools")


def kind_name(record: Record) -> str:
    """Return the name of the kind of a record: of several with its class, the first."""
    return next(kind.name for kind in KINDS if kind.record is type(record))


def match_kinds(names: set[str]) -> list[RecordKind]:
    """Return the kinds that a row with these columns fits.

    A kind is left out if another kind uses more of the columns: prompt, completion and label are a
    labelled row, not a prompt_completion row with one more column.
    """
    used = {kind: names & set(kind.columns) for kind in KINDS if names >= set(kind.required)}

    def dominated(kind: RecordKind) -> bool:
        return any(
            used[kind] < columns and other.extends != kind.name for other, columns in used.items()
        )

    return [kind for kind in used if not dominated(kind)]

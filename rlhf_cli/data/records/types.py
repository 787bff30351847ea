"""The kinds of record: what a row means, checked once. Everything after trusts it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from typing import Any

import numpy as np

from rlhf_cli.data.records import fields
from rlhf_cli.data.records.fields import Messages, Prompt, Response, tools
from rlhf_cli.data.records.responses import split_transcripts, with_responses, without_shared_turns
from rlhf_cli.data.report import Malformed, Refused

Columns = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TextRecord:
    """A document."""

    text: str


@dataclass(frozen=True, slots=True)
class PromptCompletionRecord:
    """A prompt and what is to follow it."""

    prompt: Prompt
    completion: Response


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """A whole conversation, the assistant's turns among it."""

    messages: Messages


@dataclass(frozen=True, slots=True)
class PreferenceRecord:
    """Two responses, the first preferred; `margin` says by how much."""

    prompt: Prompt
    chosen: Response
    rejected: Response
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class RankedRecord:
    """Several responses with a score each; higher is better."""

    prompt: Prompt
    responses: tuple[Response, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LabelledRecord:
    """A response that is desirable or not."""

    prompt: Prompt
    completion: Response
    label: bool


@dataclass(frozen=True, slots=True)
class ScoredRecord:
    """A response and how good it is; higher is better."""

    prompt: Prompt
    completion: Response
    score: float


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """A prompt alone."""

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
    """Whether it has messages, which go through a chat template."""
    values = (getattr(record, part.name) for part in dataclass_fields(record))
    return any(
        isinstance(v, tuple) and bool(v) and isinstance(v[0], fields.Message) for v in values
    )


def scores_of(record: Record) -> tuple[float, ...] | None:
    """What a judge said of each of a record's responses, in order; none where nobody judged.

    Scores as they are, 1 or 0 for a label, and for a pair its margin on the chosen response.
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


def _text(columns: Columns) -> TextRecord:
    text = fields.text("text", columns["text"])
    if not text.strip():
        raise Refused("empty text")
    return TextRecord(text)


def _chat(columns: Columns) -> ChatRecord:
    return ChatRecord(fields.spoken(fields.messages("messages", columns["messages"])))


def _prompt_completion(columns: Columns) -> PromptCompletionRecord:
    said = {"completion": columns["completion"]}
    prompt, [completion] = with_responses(columns["prompt"], said)
    return PromptCompletionRecord(prompt, completion)


def _preference(columns: Columns) -> PreferenceRecord:
    margin = columns.get("margin")
    margin = None if margin is None else fields.number("margin", margin)
    prompt, chosen, rejected = _pair(columns)
    if chosen == rejected:
        raise Refused("chosen equals rejected")
    return PreferenceRecord(prompt, chosen, rejected, margin)


def _pair(columns: Columns) -> tuple[Prompt, Response, Response]:
    said = {name: columns[name] for name in ("chosen", "rejected")}
    if "prompt" in columns:
        prompt, [chosen, rejected] = with_responses(columns["prompt"], said)
        return without_shared_turns(prompt, chosen, rejected)
    first, second = (fields.prompt(name, value) for name, value in said.items())
    return split_transcripts(first, second)


def _ranked(columns: Columns) -> RankedRecord:
    listed = fields.some("responses", columns["responses"])
    scored = fields.some("scores", columns["scores"])
    if len(listed) != len(scored):
        counts = f"{len(listed)} responses and {len(scored)} scores"
        raise Malformed(f"scores: got {counts}; need as many")
    said = {f"responses[{i}]": response for i, response in enumerate(listed)}
    prompt, responses = with_responses(columns["prompt"], said)
    scores = tuple(fields.number(f"scores[{i}]", score) for i, score in enumerate(scored))
    if len(scores) == 1:
        raise Refused("only one response")
    if len({*map(np.float32, scores)}) == 1:  # what differs less is a tie to the loss
        raise Refused("all scores are equal")
    return RankedRecord(prompt, tuple(responses), scores)


def _labelled(columns: Columns) -> LabelledRecord:
    pair = _prompt_completion(columns)
    return LabelledRecord(pair.prompt, pair.completion, fields.flag("label", columns["label"]))


def _labelled_text(columns: Columns) -> LabelledRecord:
    return LabelledRecord("", _text(columns).text, fields.flag("label", columns["label"]))


def _scored(columns: Columns) -> ScoredRecord:
    pair = _prompt_completion(columns)
    return ScoredRecord(pair.prompt, pair.completion, fields.number("score", columns["score"]))


def _scored_text(columns: Columns) -> ScoredRecord:
    return ScoredRecord("", _text(columns).text, fields.number("score", columns["score"]))


def _prompt(columns: Columns) -> PromptRecord:
    return PromptRecord(fields.prompt("prompt", columns["prompt"]))


def _chat_prompt(columns: Columns) -> PromptRecord:
    turns = fields.messages("messages", columns["messages"])
    asked = turns[:-1] if turns[-1].role == "assistant" else turns
    if not asked:
        raise Refused("no message before the assistant's")
    return PromptRecord(asked)


@dataclass(frozen=True)
class Kind:
    """A kind of record: its columns and how they are read."""

    name: str
    record: type[Any]
    required: tuple[str, ...]
    read: Callable[[Columns], Record]
    optional: tuple[str, ...] = ()
    extends: str = ""
    """A kind that the same row can be read as too, with columns that it ignores."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that the kind knows."""
        return self.required + self.optional

    def parse(self, columns: Columns) -> Record:
        """The record of a row.

        Raises:
            Malformed: a column is missing or of the wrong type.
            Refused: there is nothing to learn from it.
        """
        there = {name: value for name, value in columns.items() if value is not None}
        missing = [name for name in self.required if name not in there]
        if missing:
            found = ", ".join(there) or "none"
            nulls = ", ".join(
                name for name in self.columns if name in columns.keys() - there.keys()
            )
            null = f"; null: {nulls}" if nulls else ""
            raise Malformed(
                f"no column {', '.join(missing)}; found {found}{null}. See rlhf docs data"
            )
        return _with_tools(self.read(there), there)


def _with_tools(record: Record, columns: Columns) -> Record:
    """The record with the row's `tools` on its first message; a text prompt has none."""
    listed = tools("tools", columns.get("tools"))
    name = "messages" if isinstance(record, ChatRecord) else "prompt"
    as_any: Any = record
    asked = getattr(record, name, "")
    if not listed or isinstance(asked, str):
        return record
    found: Record = replace(as_any, **{name: (replace(asked[0], tools=listed), *asked[1:])})
    return found


KINDS = (
    Kind("chat", ChatRecord, ("messages",), _chat),
    Kind("preference", PreferenceRecord, ("chosen", "rejected"), _preference, ("prompt", "margin")),
    Kind("ranked", RankedRecord, ("prompt", "responses", "scores"), _ranked),
    Kind("labelled", LabelledRecord, ("prompt", "completion", "label"), _labelled),
    Kind("scored", ScoredRecord, ("prompt", "completion", "score"), _scored),
    Kind("labelled_text", LabelledRecord, ("text", "label"), _labelled_text, extends="text"),
    Kind("scored_text", ScoredRecord, ("text", "score"), _scored_text, extends="text"),
    Kind("prompt_completion", PromptCompletionRecord, ("prompt", "completion"), _prompt_completion),
    Kind("text", TextRecord, ("text",), _text),
    Kind("prompt", PromptRecord, ("prompt",), _prompt),
    Kind("chat_prompt", PromptRecord, ("messages",), _chat_prompt),
)


COLUMNS = (*dict.fromkeys(name for kind in KINDS for name in kind.columns), "tools")


def fitting(names: set[str]) -> list[Kind]:
    """The kinds that a row with these columns can be.

    A kind whose columns are a part of another's is left out: prompt, completion and label are a
    labelled row, and not a prompt_completion row with a column too many.
    """
    used = {kind: names & set(kind.columns) for kind in KINDS if names >= set(kind.required)}

    def beaten(kind: Kind) -> bool:
        return any(used[kind] < own and other.extends != kind.name for other, own in used.items())

    return [kind for kind in used if not beaten(kind)]

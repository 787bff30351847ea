"""What the checks of a data file read: records, their texts, and their tokens before truncation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.examples import Examples
from rlhf_cli.data.records.fields import REASONING_KEYS, Message, Prompt, Response
from rlhf_cli.data.records.reader import RecordWithSource
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
from rlhf_cli.data.report import DataReport
from rlhf_cli.data.sources.base import RawRow


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What an example longer than `data.max_length` loses.

    Attributes:
        location: `file:line`.
        longest: tokens of its longest row.
        prompt_start: most tokens that one of its rows loses at the start.
        response_end: most tokens that one of its rows loses at the end.
        loses_end: whether the end token of a response is lost.
    """

    location: str
    longest: int
    prompt_start: int = 0
    response_end: int = 0
    loses_end: bool = False


@dataclass(frozen=True, kw_only=True)
class CheckedData:
    """A data file as a stage reads it, and what the stage does with it.

    Attributes:
        stage: name of the stage.
        cfg: data configuration of the stage.
        tokenizer: the model's, with the chat template that the rows get.
        end_tokens: ids at which the model as it is stops to generate.
        own_template: whether the chat template is the model's own, not ChatML in place of none.
        template: the stage's key `template`; empty if it has none.
        rows: rows as they are in the file.
        records: rows that are kept.
        refused: reason -> `file:line` of every row that is refused for it.
        report: counts of the reader and the tokenizer; those of the reader are of all rows.
        examples: untruncated tokens of the records, one example each; None for prompts alone.
        cuts: examples that are longer than `data.max_length`.
        prompt_lengths: for prompts alone, the tokens of each record.
        held_out: good rows of `data.eval`.
        held_out_of_rows: whether these are some of `rows`, which are then not trained on.
        options: the stage's other keys that checks read: `desirable_weight`,
            `undesirable_weight`, `loss_type`, `max_new_tokens`.
        positions: longest row that the model takes; None if unknown.
        rows_total: rows in the file, of which `rows` may be a sample.
    """

    stage: str
    cfg: DataConfig
    tokenizer: Any
    report: DataReport
    rows: Sequence[RawRow] = ()
    records: Sequence[RecordWithSource] = ()
    refused: Mapping[str, Sequence[str]] = field(default_factory=dict)
    examples: Examples | None = None
    cuts: Sequence[Cut] = ()
    prompt_lengths: Sequence[int] = ()
    held_out: Sequence[RecordWithSource] = ()
    held_out_of_rows: bool = False
    end_tokens: frozenset[int] = frozenset()
    own_template: bool = True
    template: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    positions: int | None = None
    rows_total: int = 0

    @property
    def total(self) -> int:
        """Number of records, the unit of most checks."""
        return len(self.records)

    @cached_property
    def texts(self) -> list[tuple[str, tuple[Text, ...]]]:
        """Location and texts of each record, in order."""
        return [(record.location, tuple(texts_of(record.record))) for record in self.records]

    @cached_property
    def trained_tokens(self) -> NDArray[np.int64]:
        """[R], trained tokens of each row of `examples`, the end token included."""
        assert self.examples is not None
        starts = self.examples.row_starts
        cumulative = np.concatenate([[0], np.cumsum(self.examples.loss_mask)])
        return np.asarray(cumulative[starts[1:]] - cumulative[starts[:-1]], np.int64)


@dataclass(frozen=True, slots=True)
class Text:
    """One text of a record.

    Attributes:
        place: column or message, as in `chosen` or `messages[2]`.
        text: the text.
        is_response: whether the model learns or scores it.
        is_message: whether the chat template writes it.
    """

    place: str
    text: str
    is_response: bool
    is_message: bool


def texts_of(record: Record) -> Iterator[Text]:
    """Yield every text of a record in the order in which a model reads them."""
    match record:
        case TextRecord(text):
            yield Text("text", text, True, False)
        case ChatRecord(messages):
            yield from _of_messages("messages", messages, "assistant")
        case PromptRecord(prompt):
            yield from _of_prompt(prompt)
        case (
            PromptCompletionRecord(prompt, response)
            | LabelledRecord(prompt, response)
            | ScoredRecord(prompt, response)
        ):
            yield from _of_prompt(prompt)
            yield from _of_response("completion", response)
        case PreferenceRecord(prompt, chosen, rejected):
            yield from _of_prompt(prompt)
            yield from _of_response("chosen", chosen)
            yield from _of_response("rejected", rejected)
        case RankedRecord(prompt, responses):
            yield from _of_prompt(prompt)
            for index, response in enumerate(responses):
                yield from _of_response(f"responses[{index}]", response)


def prompt_and_responses(record: Record) -> tuple[str, tuple[str, ...]]:
    """Return the prompt and the responses of a record, each as one text.

    A document is a response without a prompt; the last turn of a chat is its response.
    """
    match record:
        case TextRecord(text):
            return "", (text,)
        case ChatRecord(messages):
            last = messages[-1:] if messages[-1].role == "assistant" else ()
            return join(messages[: len(messages) - len(last)]), (join(last),) if last else ()
        case PromptRecord(prompt):
            return join(prompt), ()
        case PreferenceRecord(prompt, chosen, rejected):
            return join(prompt), (join(chosen), join(rejected))
        case RankedRecord(prompt, responses):
            return join(prompt), tuple(map(join, responses))
    return join(record.prompt), (join(record.completion),)


def join(value: Prompt | Response) -> str:
    """Return a text as it is, and messages as one text that names who speaks."""
    if isinstance(value, str):
        return value
    return "\n\n".join(f"{message.role}: {message.content}" for message in value)


def _of_prompt(prompt: Prompt) -> Iterator[Text]:
    if isinstance(prompt, str):
        yield Text("prompt", prompt, False, False)
    else:
        yield from _of_messages("prompt", prompt, "")


def _of_response(place: str, response: Response) -> Iterator[Text]:
    if isinstance(response, str):
        yield Text(place, response, True, False)
    else:
        yield from _of_messages(place, response, "assistant")


def _of_messages(place: str, messages: Sequence[Message], trained: str) -> Iterator[Text]:
    for index, message in enumerate(messages):
        here = f"{place}[{index}]"
        is_response = message.role == trained
        yield Text(here, message.content, is_response, True)
        for key in REASONING_KEYS:
            if isinstance(value := message.extra.get(key), str):
                yield Text(f"{here}.{key}", value, is_response, True)

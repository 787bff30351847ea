"""Rows with responses to score, as they are in the file, and the columns that scoring adds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlhf_cli.commands.score.config import ScoreConfig
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.records.fields import Messages, Prompt, Response
from rlhf_cli.data.records.reader import SourceReader
from rlhf_cli.data.records.types import (
    KINDS,
    ChatRecord,
    LabelledRecord,
    PreferenceRecord,
    PromptCompletionRecord,
    RankedRecord,
    Record,
    ScoredRecord,
    TextRecord,
)
from rlhf_cli.data.report import DataReport, MalformedRow, RefusedRow
from rlhf_cli.data.sources.base import RawRow
from rlhf_cli.data.sources.mixture import Mixture, open_sources
from rlhf_cli.errors import ConfigError, DataError

RECORDS = (
    PreferenceRecord,
    RankedRecord,
    LabelledRecord,
    ScoredRecord,
    PromptCompletionRecord,
    ChatRecord,
    TextRecord,
)
"""Record classes with a response, the preferred first."""

_RESPONSE_COLUMNS = {"completion", "chosen", "rejected", "responses", "messages"}


@dataclass(frozen=True)
class Row:
    """A row of the data.

    Attributes:
        columns: all columns, as they were read.
        location: `file:line`.
        kind: `single`, `pair` or `list`; empty if the row was refused.
        pairs: prompt and text of each response; empty if the row was refused.
        targets: label or score of each response in the data; empty if the row has none.
        extra_columns: columns beside prompt and responses, which reward functions read.
    """

    columns: Mapping[str, Any]
    location: str
    kind: str = ""
    pairs: tuple[tuple[Prompt, str], ...] = ()
    targets: tuple[float, ...] = ()
    extra_columns: Mapping[str, Any] = field(default_factory=dict)


def read_rows(cfg: ScoreConfig) -> tuple[list[Row], DataReport]:
    """Read all rows of `data.path`; refused rows are kept without responses.

    Raises:
        DataError: the rows cannot be read, have no responses, or too many are malformed.
        ConfigError: a row has a column with the name of a new one.
    """
    data = DataConfig(**vars(cfg.data), eval="none")
    sources = open_sources(data, data.path, "reward", "train")
    mixture = Mixture(sources, [None] * len(sources))
    kinds = [kind for record in RECORDS for kind in KINDS if kind.record is record]
    readers = [SourceReader(source.settings, "score", kinds) for source in sources]
    report = DataReport(mixture.files, sha256=mixture.fingerprint)
    found: list[Row] = []
    for raw in mixture.rows():
        for one in readers[raw.source].expand(raw):
            found += _read(one, readers[one.source], report)
    report.kind = ", ".join(dict.fromkeys(reader.kind.name for reader in readers if reader.kind))
    report.require_few_malformed(data.max_bad_rows)
    if not any(row.pairs for row in found):
        head = f"{mixture.label}: none of {report.rows} rows has a response to score"
        raise DataError("\n".join([head, *report.left_out_lines()]))
    if not cfg.replace:
        require_new_columns(found, cfg)
    return found, report


def _read(raw: RawRow, reader: SourceReader, report: DataReport) -> Iterator[Row]:
    """The row; nothing if it is malformed."""
    report.rows += 1
    try:
        columns = raw.columns()
        renamed, has_targets = _under_our_names(columns)
        read = reader.read(replace(raw, parsed=renamed))
        pairs = tuple(_pairs_of(read.record))
    except MalformedRow as error:
        report.add_malformed(raw.location, str(error))
    except RefusedRow as error:
        report.add_refused(raw.location, str(error))
        if isinstance(raw.parsed, dict):
            yield Row(raw.parsed, raw.location)
    else:
        report.kept += 1
        targets = _targets_of(read.record) if has_targets else ()
        kind = _kind_of(read.record)
        yield Row(columns, raw.location, kind, pairs, targets, read.extra_columns)


def _under_our_names(columns: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Columns in which every list of responses has scores, and a single response is `completion`.

    A list of responses without scores, or with equal ones, is no ranking to learn from, but its
    responses can be scored; it gets scores that are not used.

    Returns:
        The columns, and whether scores in them are those of the data.
    """
    if "response" in columns and "prompt" in columns and not _RESPONSE_COLUMNS & {*columns}:
        names = {name: "completion" if name == "response" else name for name in columns}
        return {names[name]: value for name, value in columns.items()}, True
    responses, scores = columns.get("responses"), columns.get("scores")
    ranked = isinstance(scores, list) and scores != scores[:1] * len(scores)
    if ranked or not isinstance(responses, list):
        return columns, True
    return {**columns, "scores": list(range(len(responses)))}, False


def _pairs_of(record: Record) -> Iterator[tuple[Prompt, str]]:
    """Prompt and text of each response.

    Raises:
        RefusedRow: a response is not text alone, or there is none.
    """
    match record:
        case TextRecord(text):
            yield "", text
        case ChatRecord(messages):
            yield _last_turn((), messages)
        case PreferenceRecord(prompt, chosen, rejected):
            yield _last_turn(prompt, chosen)
            yield _last_turn(prompt, rejected)
        case RankedRecord(prompt, responses):
            yield from (_last_turn(prompt, one) for one in responses)
        case (
            PromptCompletionRecord(prompt, response)
            | LabelledRecord(prompt, response)
            | ScoredRecord(prompt, response)
        ):
            yield _last_turn(prompt, response)


def _last_turn(prompt: Prompt, response: Response) -> tuple[Prompt, str]:
    """Prompt and text of a response; of several turns, the last is the response."""
    if isinstance(response, str):
        return prompt, response
    assert isinstance(prompt, tuple)  # both have the same form
    before, last = response[:-1], response[-1]
    if last.role != "assistant":
        raise RefusedRow(f"the last message is the {last.role}'s; need the assistant's")
    if last.extra:
        raise RefusedRow(f"the response has {', '.join(last.extra)} beside its text")
    messages: Messages = (*prompt, *before)
    if not messages:
        raise RefusedRow("no message before the assistant's")
    return messages, last.content


def _kind_of(record: Record) -> str:
    if isinstance(record, PreferenceRecord):
        return "pair"
    return "list" if isinstance(record, RankedRecord) else "single"


def _targets_of(record: Record) -> tuple[float, ...]:
    match record:
        case RankedRecord(scores=scores):
            return scores
        case LabelledRecord(label=label):
            return (float(label),)
        case ScoredRecord(score=score):
            return (score,)
    return ()


def new_columns(kind: str, column: str, terms: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Names of the columns that scoring adds to a row.

    Args:
        kind: `single`, `pair` or `list`; empty for a refused row.
        column: name of the column of a single score.
        terms: names of the reward terms; a single one has no columns of its own.

    Returns:
        Name -> what it holds (`chosen`, `rejected`, `margin` or empty) and the term (or empty for
        the combined score).
    """
    parts = {"pair": ("chosen", "rejected", "margin"), "list": ("",), "single": ("",)}[kind]
    first = f"{column}s" if kind == "list" else column
    each = ["", *(terms if len(terms) > 1 else [])]
    named = [(part, term) for term in each for part in parts]
    return {"_".join(filter(None, (first, *one))): one for one in named}


def require_new_columns(rows: Sequence[Row], cfg: ScoreConfig) -> None:
    """Require that no row has a column with the name of a new one.

    Raises:
        ConfigError: names the row and the column.
    """
    for row in rows:
        added = new_columns(row.kind, cfg.column, cfg.reward.names) if row.kind else {}
        for name in added:
            if name in row.columns:
                raise ConfigError(
                    f"column: got {cfg.column}, and {row.location} has a column {name} already; "
                    f"need another name. Try column=reward_{cfg.column}, or replace=true"
                )


def scored_columns(
    row: Row, cfg: ScoreConfig, kinds: Sequence[str], scores: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """The columns of a row with those that scoring adds; null where the row was refused.

    Args:
        row: the row.
        cfg: names of columns and terms.
        kinds: kinds of all rows; a refused row gets the columns of the first.
        scores: term, or empty for the combined score -> the scores of the row's responses.
    """
    added = new_columns(row.kind or kinds[0], cfg.column, cfg.reward.names)
    values = {
        name: _value(part, row.kind, scores[term]) if row.pairs else None
        for name, (part, term) in added.items()
    }
    return {**row.columns, **values}


def _value(part: str, kind: str, scores: Sequence[float]) -> float | list[float]:
    if kind == "list":
        return list(scores)
    if part == "margin":
        return scores[0] - scores[1]
    return scores[1] if part == "rejected" else scores[0]

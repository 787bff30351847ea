"""`rlhf data stats`: counts and lengths of rows as a stage reads them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlhf_cli.commands.data.histogram import draw_histogram
from rlhf_cli.commands.data.inputs import read_request
from rlhf_cli.commands.data.show import parse_format, write_text
from rlhf_cli.console import format_table
from rlhf_cli.data.preview import shorten
from rlhf_cli.data.records.types import (
    LabelledRecord,
    PreferenceRecord,
    RankedRecord,
    Record,
    ScoredRecord,
    TextRecord,
    kind_name,
)
from rlhf_cli.data.report import pluralize
from rlhf_cli.progress import track
from rlhf_cli.stages.inspection import InspectedRow, StageRows
from rlhf_cli.stages.tokenizers import log_plain_text

OPTIONS = ("format", "output")
PERCENTILES = {"min": 0, "p50": 50, "p90": 90, "p99": 99, "max": 100}
TOKENS, PROMPT, RESPONSE = "tokens", "prompt", "response"


def run(words: list[str]) -> None:
    """Run `rlhf data stats FILE [format=json] [key=value ...]`.

    Raises:
        ConfigError: an argument is wrong.
        DataError: the rows cannot be read, or the stage does not take them.
    """
    request = read_request(words, OPTIONS)
    output, form = parse_format(request.options, ("terminal", "json"), {".json": "json"})
    rows = request.open()
    stats = measure(rows)
    facts = stats.to_json()
    text = json.dumps(facts, indent=2) + "\n" if form == "json" else format_stats(stats)
    write_text(text, output)
    log_plain_text(request.config, rows.tokenizer, rows.report)


@dataclass
class RowStats:
    """Counts of a stage's rows.

    Attributes:
        stage: name of the stage.
        max_length: tokens that a row, or for ppo a prompt, may have.
        rows: rows read.
        kinds: kind of record -> kept rows.
        left_out: reason -> rows refused or malformed for it, and the first of them.
        malformed: rows that break their format.
        lengths: what is measured -> tokens of each row, before truncation.
        trained: tokens in the loss, after truncation.
        kept: tokens of all rows, after truncation.
        truncated: token rows that lost tokens.
        lost: tokens lost.
        no_end: token rows that lost the end of their response.
        turns: number of messages -> records with as many.
        labels: label -> responses with it.
        numbers: `margin` or `score` -> the values.
        responses: number of responses -> rankings with as many.
        longer: `chosen`, `rejected` or `equal` -> pairs in which it has more tokens.
        notes: lines about what was not read.
    """

    stage: str
    max_length: int
    rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)
    malformed: int = 0
    lengths: dict[str, list[int]] = field(default_factory=dict)
    trained: int = 0
    kept: int = 0
    truncated: int = 0
    lost: int = 0
    no_end: int = 0
    turns: Counter[int] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    numbers: dict[str, list[float]] = field(default_factory=dict)
    responses: Counter[int] = field(default_factory=Counter)
    longer: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add(self, one: InspectedRow) -> None:
        """Count a row."""
        self.rows += 1
        if one.problem:
            count, first = self.left_out.get(one.problem, (0, one.raw.location))
            self.left_out[one.problem] = count + 1, first
            self.malformed += one.malformed
            return
        assert one.record is not None
        self.kinds[kind_name(one.record)] += 1
        for name, row in zip(_row_kinds(one), one.rows, strict=True):
            whole, start = row.whole, row.whole.response_start
            self._measure(TOKENS, len(whole.tokens))
            if not isinstance(one.record, TextRecord) and start < len(whole.tokens):
                self._measure(PROMPT, start)
                self._measure(name, len(whole.tokens) - start)
            lost = row.prompt_start + row.response_end
            self.truncated += bool(lost)
            self.no_end += bool(row.response_end)
            self.lost += lost
            self.kept += len(row.row.tokens)
            self.trained += int(row.row.loss_mask.sum())
        self._add_record(one.record)
        self._add_pair(one)

    def _measure(self, name: str, length: int) -> None:
        self.lengths.setdefault(name, []).append(length)

    def _add_record(self, record: Record) -> None:
        turns = getattr(record, "messages", None) or getattr(record, "prompt", None)
        if isinstance(turns, tuple):
            self.turns[len(turns)] += 1
        match record:
            case LabelledRecord(label=label):
                self.labels["desirable" if label else "undesirable"] += 1
            case PreferenceRecord(margin=margin) if margin is not None:
                self.numbers.setdefault("margin", []).append(margin)
            case ScoredRecord(score=score):
                self.numbers.setdefault("score", []).append(score)
            case RankedRecord(scores=scores):
                self.responses[len(scores)] += 1
                self.numbers.setdefault("score", []).extend(scores)

    def _add_pair(self, one: InspectedRow) -> None:
        if isinstance(one.record, PreferenceRecord):
            chosen, rejected = (len(row.whole.tokens) for row in one.rows)
            names = ("rejected", "equal", "chosen")
            self.longer[names[1 + (chosen > rejected) - (chosen < rejected)]] += 1

    def to_json(self) -> dict[str, Any]:
        """Return all counts as JSON values."""
        return {
            "stage": self.stage,
            "rows": self.rows,
            "kept": sum(self.kinds.values()),
            "kinds": dict(self.kinds),
            "malformed": self.malformed,
            "left_out": [
                {"reason": shorten(reason, 2000), "rows": count, "first": first}
                for reason, (count, first) in self._reasons()
            ],
            "max_length": self.max_length,
            "lengths": {name: summarize(values) for name, values in self.lengths.items()},
            "token_rows": len(self.lengths.get(TOKENS, ())),
            "truncated": self.truncated,
            "truncated_tokens": self.lost,
            "response_end_lost": self.no_end,
            "kept_tokens": self.kept,
            "trained_tokens": self.trained,
            "messages": {str(turns): rows for turns, rows in sorted(self.turns.items())},
            "labels": dict(self.labels),
            "numbers": {name: summarize(values) for name, values in self.numbers.items()},
            "responses": {str(count): rows for count, rows in sorted(self.responses.items())},
            "longer": dict(self.longer),
            "notes": self.notes,
        }

    def _reasons(self) -> list[tuple[str, tuple[int, str]]]:
        return sorted(self.left_out.items(), key=lambda item: -item[1][0])


def measure(rows: StageRows) -> RowStats:
    """Read all rows, and count them.

    Raises:
        DataError: the rows cannot be read, or the stage does not take them.
    """
    stats = RowStats(rows.stage, rows.max_length)
    size = sum(source.size for source in rows.mixture.sources)
    with closing(track(_sized(rows), size)) as tracked:
        for one in tracked:
            stats.add(one.row)
    stats.notes = rows.note_lines()
    return stats


@dataclass(frozen=True)
class _SizedRow:
    row: InspectedRow
    size: int


def _sized(rows: StageRows) -> Iterator[_SizedRow]:
    return (_SizedRow(one, one.raw.size) for one in rows.inspect())


def _row_kinds(one: InspectedRow) -> list[str]:
    """What the length of each token row's response is counted as."""
    if isinstance(one.record, PreferenceRecord):
        return ["chosen", "rejected"]
    return [RESPONSE] * len(one.rows)


def summarize(values: list[Any]) -> dict[str, float]:
    """Return mean and percentiles of numbers."""
    found = np.percentile(values, list(PERCENTILES.values()), method="higher").tolist()
    mean = round(float(np.mean(values)), 4)
    return {**dict(zip(PERCENTILES, found, strict=True)), "mean": mean}


def format_stats(stats: RowStats) -> str:
    """Return the statistics as text for a terminal."""
    facts = stats.to_json()
    kinds = ", ".join(f"{count} {kind}" for kind, count in stats.kinds.items())
    head = f"{pluralize(stats.rows, 'row')} read for {stats.stage}, {facts['kept']} kept"
    parts = [f"{head}: {kinds}" if kinds else head, *_left_out_lines(facts)]
    if stats.lengths:
        parts += ["", _lengths_table(facts["lengths"], "tokens a row")]
        parts += _truncation_lines(stats)
        parts += ["", "tokens a row, before truncation", *_histogram(stats)]
    if stats.numbers:
        parts += ["", _lengths_table(facts["numbers"], "values")]
    parts += _balance_lines(stats)
    return "\n".join([*parts, *stats.notes]) + "\n"


def _left_out_lines(facts: Mapping[str, Any]) -> list[str]:
    return [
        f"  {pluralize(one['rows'], 'row')} left out: {one['reason']}; the first is {one['first']}"
        for one in facts["left_out"]
    ]


def _lengths_table(summaries: Mapping[str, Mapping[str, float]], title: str) -> str:
    names = ("min", "mean", "p50", "p90", "p99", "max")
    rows = [[title, *names]]
    rows += [[name, *(f"{one[key]:.4g}" for key in names)] for name, one in summaries.items()]
    return format_table(rows)


def _truncation_lines(stats: RowStats) -> list[str]:
    count = len(stats.lengths[TOKENS])
    lines = []
    if stats.truncated:
        lines.append(
            f"truncated: {stats.truncated} of {pluralize(count, 'token row')} "
            f"({stats.truncated / count:.1%}), {pluralize(stats.lost, 'token')}; "
            f"{stats.no_end} of them lost the response's end"
        )
    if stats.trained:
        share = stats.trained / stats.kept
        lines.append(f"trained: {stats.trained} of {stats.kept} tokens ({share:.1%})")
    return ["", *lines] if lines else []


def _histogram(stats: RowStats) -> list[str]:
    return draw_histogram(stats.lengths[TOKENS], stats.max_length, "data.max_length")


def _balance_lines(stats: RowStats) -> list[str]:
    groups = {
        "messages": {str(turns): rows for turns, rows in sorted(stats.turns.items())},
        "responses": {str(count): rows for count, rows in sorted(stats.responses.items())},
        "labels": dict(stats.labels),
        "longer": dict(stats.longer),
    }
    lines = [f"{name}: {_shares(counts)}" for name, counts in groups.items() if counts]
    return ["", *lines] if lines else []


def _shares(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    shown = [f"{name} {count} ({count / total:.0%})" for name, count in list(counts.items())[:8]]
    return ", ".join([*shown, "..."] if len(counts) > 8 else shown)

"""Checks of rows that occur twice: equal, similar, contradictory, or held out and trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from rlhf_cli.data.checks.content import CheckedData, prompt_and_responses
from rlhf_cli.data.checks.finding import Finding, Severity, Tally, excerpt
from rlhf_cli.data.checks.shingles import (
    candidate_pairs,
    hash_shingles,
    normalize,
    simplify,
    texts_are_similar,
)
from rlhf_cli.data.records.reader import RecordWithSource
from rlhf_cli.data.records.types import LabelledRecord, PreferenceRecord, Record

MAX_ROWS = 200_000
"""Rows among which near duplicates are looked for."""

WARN_SHARE = 0.01
"""Share of repeated rows from which on they are a warning, not a note."""

MIN_PROMPT_WORDS = 4
"""Words of a prompt whose repetition says something; anyone begins with `hello`."""

Key = tuple[str, ...]


@dataclass(frozen=True)
class ComparedRows:
    """Rows as they are compared with each other.

    Attributes:
        records: the rows.
    """

    records: Sequence[RecordWithSource]

    @cached_property
    def exact(self) -> list[Key]:
        """Prompt and responses of each row."""
        return [_exact_key(record.record) for record in self.records]

    @cached_property
    def parts(self) -> tuple[list[str], list[str], list[str]]:
        """Simplified prompt, first response and other responses of each row.

        They are compared one by one, so that a pair and its reverse are not similar.
        """
        simplified = [
            (simplify(key[0]), simplify("".join(key[1:2])), simplify("\n".join(key[2:])))
            for key in self.exact
        ]
        prompts, first, others = zip(*simplified, strict=True) if simplified else ((), (), ())
        return [*prompts], [*first], [*others]

    @cached_property
    def simplified(self) -> list[Key]:
        """Simplified texts of each row."""
        return list(zip(*self.parts, strict=True))


def _exact_key(record: Record) -> Key:
    prompt, responses = prompt_and_responses(record)
    return (prompt, *responses)


def check_duplicates(data: CheckedData) -> Iterator[Finding]:
    """Check for rows with the same texts as an earlier one, and for rows with nearly the same."""
    rows = ComparedRows(data.records[:MAX_ROWS])
    first: dict[Key, int] = {}
    equal, near = Tally(), Tally()
    repeated: set[int] = set()
    for index, key in enumerate(rows.exact):
        if first.setdefault(key, index) != index:
            repeated.add(index)
            _add(equal, rows, first[key], index)
    for one, other in _near_pairs(rows):
        if not {one, other} & repeated and rows.exact[one] != rows.exact[other]:
            repeated.add(other)
            _add(near, rows, one, other)
    yield from equal.report(
        "duplicate-rows",
        _severity(equal, data),
        "rows that repeat an earlier row",
        len(rows.records),
        advice="Keep one of each: repeated rows count several times in every epoch",
    )
    sampled = "" if data.total <= MAX_ROWS else f" (among the first {MAX_ROWS:,} rows)"
    yield from near.report(
        "near-duplicates",
        _severity(near, data),
        "rows with nearly the text of an earlier one (80 % of the 5-word sequences, 90 % below 50 "
        f"words, or a short text but for case and punctuation){sampled}",
        len(rows.records),
        advice="Keep one of each, and never one for training and another for evaluation",
    )


def _severity(tally: Tally, data: CheckedData) -> Severity:
    return "warning" if tally.count >= WARN_SHARE * data.total else "note"


def _add(tally: Tally, rows: ComparedRows, one: int, other: int) -> None:
    text = excerpt(" | ".join(filter(None, rows.exact[other])), max_characters=60)
    tally.add(rows.records[other].location, f"as {rows.records[one].location}: {text}")


def _near_pairs(rows: ComparedRows) -> Iterator[tuple[int, int]]:
    """Yield pairs of rows that are equal but for case and punctuation, or similar."""
    first: dict[Key, int] = {}
    for index, key in enumerate(rows.simplified):
        if any(key) and first.setdefault(key, index) != index:
            yield first[key], index
    words = [[normalize(text) for text in column] for column in rows.parts]
    whole = hash_shingles(" ".join(row) for row in zip(*words, strict=True))
    parts = [hash_shingles(column) for column in words]
    for one, other in candidate_pairs(whole):
        if texts_are_similar(parts, rows.parts, one, other):
            yield one, other


def check_contradictions(data: CheckedData) -> Iterator[Finding]:
    """Check for rows that contradict another: swapped pairs, a text with both labels."""
    swapped, relabelled = Tally(), Tally()
    pairs: dict[Key, str] = {}
    labels: dict[Key, tuple[bool, str]] = {}
    for record in data.records:
        key = _exact_key(record.record)
        if isinstance(record.record, PreferenceRecord):
            prompt, chosen, rejected = key
            pairs.setdefault(key, record.location)
            if other := pairs.get((prompt, rejected, chosen)):
                swapped.add(record.location, f"against {other}: {excerpt(chosen, None, 50)}")
        elif isinstance(record.record, LabelledRecord):
            label, other = labels.setdefault(key, (record.record.label, record.location))
            if label != record.record.label:
                relabelled.add(record.location, f"against {other}: {excerpt(key[-1], None, 50)}")
    yield from swapped.report(
        "contradictory-pairs",
        "warning",
        "pairs whose chosen response is the rejected one of another row, and the reverse",
        data.total,
        advice="Keep the right one of each; among raters who disagree, label_smoothing=0.1 helps",
    )
    yield from relabelled.report(
        "contradictory-labels",
        "warning",
        "responses that another row labels the other way",
        data.total,
        advice="Keep the right one of each",
    )


def check_overlap(data: CheckedData) -> Iterator[Finding]:
    """Check for held-out rows, or their prompts, that are trained on too."""
    if not data.held_out:
        return
    held_out = ComparedRows(data.held_out[:MAX_ROWS])
    own = {one.location for one in data.held_out} if data.held_out_of_rows else frozenset()
    train = ComparedRows([one for one in data.records[:MAX_ROWS] if one.location not in own])
    rows, prompts = Tally(), Tally()
    same_prompt = _first_index(train.parts[0])
    matches = _held_out_matches(train, held_out)
    for index, record in enumerate(held_out.records):
        prompt = held_out.parts[0][index]
        text = excerpt(" | ".join(filter(None, held_out.exact[index])), max_characters=60)
        if index in matches:
            rows.add(record.location, f"as {train.records[matches[index]].location}: {text}")
        elif prompt.count(" ") + 1 >= MIN_PROMPT_WORDS and prompt in same_prompt:
            prompts.add(
                record.location, f"as {train.records[same_prompt[prompt]].location}: {text}"
            )
    many = rows.count >= 0.05 * len(held_out.records)
    yield from rows.report(
        "eval-rows-in-training",
        "error" if many else "warning",
        "held-out rows that are trained on too, word for word or nearly",
        len(held_out.records),
        unit="held-out row",
        advice="Take them out of data.path: their metrics say nothing about new rows",
    )
    yield from prompts.report(
        "eval-prompts-in-training",
        "warning" if prompts.count >= WARN_SHARE * len(held_out.records) else "note",
        "held-out rows whose prompt is trained on too, with another response",
        len(held_out.records),
        unit="held-out row",
        advice="Split the rows by prompt, so that no prompt is on both sides",
    )


def _held_out_matches(train: ComparedRows, held_out: ComparedRows) -> dict[int, int]:
    """Return held-out row -> the training row that it repeats, word for word or nearly."""
    first = _first_index(train.simplified)
    found = {index: first[key] for index, key in enumerate(held_out.simplified) if key in first}
    both = ComparedRows([*train.records, *held_out.records])
    size = len(train.records)
    for one, other in _near_pairs(both):
        if one < size <= other:
            found.setdefault(other - size, one)
    return found


def _first_index(keys: Sequence[object]) -> dict[object, int]:
    """Return each key with the index of its first place."""
    return {key: index for index, key in reversed([*enumerate(keys)])}

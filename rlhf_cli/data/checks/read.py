"""Read a data file as a stage does, and keep what its loader would leave out or cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from random import Random
from sys import maxsize
from typing import Any

from rlhf_cli.data.checks.content import CheckedData, Cut, LocatedReport
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.dataset import read_records
from rlhf_cli.data.examples import flatten
from rlhf_cli.data.prompts import PROMPT_RECORDS, PromptEncoder, prompt_of
from rlhf_cli.data.records.reader import RecordWithSource
from rlhf_cli.data.records.types import PromptRecord, TextRecord
from rlhf_cli.data.report import DataReport, RefusedRow
from rlhf_cli.data.sources.base import RawRow
from rlhf_cli.data.sources.mixture import Mixture, open_held_out_data, open_training_data
from rlhf_cli.data.tokens.encode import SpecialTokens
from rlhf_cli.data.tokens.packing import Example, truncate
from rlhf_cli.data.tokens.record_tokenizer import RecordTokenizer, require_different_responses
from rlhf_cli.progress import track

MAX_ROWS = 100_000
"""Rows that are examined; of more a random sample."""

NO_LIMIT = 1 << 40
"""Tokens; longer than any row."""


@dataclass(frozen=True, kw_only=True)
class CheckedStage:
    """How a stage reads its rows.

    Attributes:
        name: name of the stage.
        cfg: its data configuration.
        tokenizer: the model's, with the chat template that the rows get.
        allowed: record classes that the stage takes, the preferred first.
        as_messages: render text prompts and responses by the chat template.
        seed: seed of the sampling from sources whose weight is not a whole number.
    """

    name: str
    cfg: DataConfig
    tokenizer: Any
    allowed: tuple[type, ...]
    as_messages: bool = False
    seed: int = 0


def read_checked_data(stage: CheckedStage, max_rows: int = MAX_ROWS, **known: Any) -> CheckedData:
    """Read the training rows and held-out rows of a stage.

    Args:
        stage: how the rows are read.
        max_rows: rows to examine at most, of each.
        **known: further attributes of `CheckedData`.

    Raises:
        DataError: the rows cannot be read, or the stage does not take them.
        ModelError: the tokenizer lacks what the rows need.
    """
    mixture = open_training_data(stage.cfg, stage.name, stage.seed)
    report = LocatedReport(mixture.files, sha256=mixture.fingerprint)
    rows, total = sample_rows(_tracked(mixture), max_rows)
    records = _read(mixture, stage, report, rows)
    data = CheckedData(
        stage=stage.name,
        cfg=stage.cfg,
        tokenizer=stage.tokenizer,
        report=report,
        rows=rows,
        rows_total=total,
        held_out=_read_held_out(stage, max_rows),
        **known,
    )
    if stage.allowed == PROMPT_RECORDS:
        return _with_prompt_lengths(data, records, stage)
    return _with_tokens(data, records, stage)


def sample_rows(rows: Iterable[RawRow], limit: int) -> tuple[list[RawRow], int]:
    """Return at most `limit` rows in their order, each with the same probability, and their number.

    Reservoir sampling (Vitter 1985, algorithm R) with a fixed seed; a row that is sampled several
    times per epoch counts once.
    """
    random, total = Random(0), 0
    kept: list[tuple[int, RawRow]] = []
    for row in rows:
        if row.repeat:
            continue
        total += 1
        if len(kept) < limit:
            kept.append((total, row))
        elif (at := random.randrange(total)) < limit:
            kept[at] = (total, row)
    return [row for _, row in sorted(kept, key=lambda numbered: numbered[0])], total


def _tracked(mixture: Mixture) -> Iterator[RawRow]:
    size = sum(source.size for source in mixture.sources)
    with closing(track(mixture.rows(), size)) as rows:
        yield from rows


def _read(
    mixture: Mixture, stage: CheckedStage, report: DataReport, rows: Iterable[RawRow]
) -> list[RecordWithSource]:
    cfg = replace(stage.cfg, max_bad_rows=maxsize)
    return list(read_records(mixture, cfg, stage.name, stage.allowed, report, rows))


def _read_held_out(stage: CheckedStage, max_rows: int) -> list[RecordWithSource]:
    mixture = open_held_out_data(stage.cfg, stage.name)
    if mixture is None:
        return []
    rows, _ = sample_rows(mixture.rows(), max_rows)
    return _read(mixture, stage, DataReport(), rows)


def _with_tokens(
    data: CheckedData, records: Sequence[RecordWithSource], stage: CheckedStage
) -> CheckedData:
    """Add the records that become examples, their tokens, and what is cut of them."""
    cfg = replace(stage.cfg, max_length=NO_LIMIT, packing=False)
    tokenizer = RecordTokenizer(stage.tokenizer, cfg, data.report, as_messages=stage.as_messages)
    examples, cuts = [], []
    kept = {}
    for example in tokenizer.examples(iter(records)):
        examples.append(example)
        kept[example[0].file, example[0].line] = True
    is_text = bool(records) and isinstance(records[0].record, TextRecord)
    for example in [] if is_text else examples:
        if max(map(len, example)) > stage.cfg.max_length:
            cuts.append(_cut(example, stage.cfg, tokenizer.special_tokens))
    for cut in cuts:
        if cut.refused:
            data.report.kept -= 1
            data.report.add_refused(cut.location, cut.refused)
    files = tuple(dict.fromkeys(row.file for example in examples for row in example))
    return replace(
        data,
        records=[record for record in records if (record.file, record.line) in kept],
        examples=flatten(examples, files),
        cuts=cuts,
    )


def _cut(example: Example, cfg: DataConfig, special: SpecialTokens) -> Cut:
    """Truncate an example as the stage does, and count what it loses."""
    rows = [one.row for one in example]
    location = f"{example[0].file}:{example[0].line}"
    longest = max(map(len, example))
    try:
        found = truncate(rows, cfg.max_length, cfg.truncation, special.bos)
        require_different_responses(rows, found, cfg.max_length)
    except RefusedRow as reason:
        return Cut(location=location, longest=longest, refused=str(reason))
    ended = [
        bool(
            row.loss_mask.any()
            and row.loss_mask.nonzero()[0][-1] >= len(row.tokens) - cut.response_end
        )
        for row, cut in zip(rows, found, strict=True)
    ]
    return Cut(
        location=location,
        longest=longest,
        prompt_start=max(cut.prompt_start for cut in found),
        response_end=max(cut.response_end for cut in found),
        loses_end=any(ended),
    )


def _with_prompt_lengths(
    data: CheckedData, records: Sequence[RecordWithSource], stage: CheckedStage
) -> CheckedData:
    """Add the prompts that the chat template accepts, and their lengths."""
    encoder = PromptEncoder(stage.tokenizer, as_message=stage.as_messages)
    kept, lengths = [], []
    for record in records:
        prompt = prompt_of(record.record)
        try:
            lengths.append(len(encoder.encode(prompt)))
        except RefusedRow as reason:
            data.report.add_refused(record.location, str(reason))
        else:
            kept.append(replace(record, record=PromptRecord(prompt)))
    data.report.kept = len(kept)
    data.report.templated = encoder.used_template
    return replace(data, records=kept, prompt_lengths=lengths)

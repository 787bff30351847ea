"""Rows as a stage reads them, one by one, with what became of each; no torch is needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, cast

import numpy as np

from rlhf_cli.console import shorten
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.examples import Examples, flatten
from rlhf_cli.data.prompts import PromptEncoder, drop_oldest, prompt_of
from rlhf_cli.data.records.reader import Outcome, RecordReader, RecordWithSource
from rlhf_cli.data.records.types import Record
from rlhf_cli.data.report import DataReport, RefusedRow
from rlhf_cli.data.sources.base import RawRow
from rlhf_cli.data.sources.mixture import (
    Mixture,
    mix_training_rows,
    open_held_out_data,
    open_sources,
)
from rlhf_cli.data.tokens.encode import TokenRow
from rlhf_cli.data.tokens.packing import Example, TruncatedRow
from rlhf_cli.data.tokens.record_tokenizer import CHUNK_RECORDS, RecordTokenizer, TokenizedRecord
from rlhf_cli.stages.config import StageConfig
from rlhf_cli.stages.records import Records, records_of, rows_stage
from rlhf_cli.stages.rollouts.config import RolloutSettings
from rlhf_cli.stages.tokenizers import load_prompt_encoder, load_row_tokenizer


@dataclass(frozen=True, slots=True)
class InspectedRow:
    """A row of a file, and what became of it.

    Attributes:
        raw: the row as the file has it; a message tree gives several.
        outcome: its record, or what is wrong with the row.
        tokenized: its token rows; None if the row has no record.
    """

    raw: RawRow
    outcome: Outcome
    tokenized: TokenizedRecord | None = None

    @property
    def record(self) -> Record | None:
        """The record; None if the row cannot be read."""
        return self.outcome.record if isinstance(self.outcome, RecordWithSource) else None

    @property
    def problem(self) -> str:
        """Why the row is left out; empty if it is kept."""
        if not isinstance(self.outcome, RecordWithSource):
            return str(self.outcome)
        return self.tokenized.refusal if self.tokenized else ""

    @property
    def malformed(self) -> bool:
        """Whether the row breaks its format, which `data.max_bad_rows` counts."""
        return not isinstance(self.outcome, RecordWithSource | RefusedRow)

    @property
    def rows(self) -> tuple[TruncatedRow, ...]:
        """Token rows, one per response; empty if the row is left out."""
        return self.tokenized.rows if self.tokenized else ()


class PromptTokenizer:
    """Encodes prompts as token rows in which nothing is trained, as PPO generates from them.

    Args:
        encoder: encodes a prompt.
        max_length: tokens of a prompt, which leave room for a response.
        truncation: `refuse` leaves longer prompts out; other values drop their oldest tokens.
        report: counts refused and truncated prompts.
    """

    def __init__(
        self, encoder: PromptEncoder, max_length: int, truncation: str, report: DataReport
    ) -> None:
        self.encoder, self.max_length, self.truncation = encoder, max_length, truncation
        self.report = report

    def tokenize(self, records: Iterable[RecordWithSource]) -> Iterator[TokenizedRecord]:
        """Yield every record with the token row of its prompt, or with the reason of refusal."""
        for record in records:
            try:
                row = self._encode(record.record)
            except RefusedRow as error:
                self.report.add_refused(record.location, str(error))
                yield TokenizedRecord(record, refusal=str(error))
            else:
                self.report.kept += 1
                self.report.add_cut("prompt start", row.prompt_start)
                yield TokenizedRecord(record, rows=(row,))
        self.report.templated = self.encoder.used_template
        self.report.unwritten = self.encoder.unwritten

    def _encode(self, record: Record) -> TruncatedRow:
        ids = self.encoder.encode(prompt_of(record))
        if len(ids) > self.max_length and self.truncation == "refuse":
            raise RefusedRow(f"longer than {self.max_length} tokens")
        bos = self.encoder.special_tokens.bos
        kept = drop_oldest(ids, self.max_length, bos)
        lost = len(ids) - len(kept)
        head = int(bool(lost) and kept[0] == bos and len(kept) > 1)
        return TruncatedRow(_prompt_row(kept), lost, 0, _prompt_row(ids), head)


def _prompt_row(ids: list[int]) -> TokenRow:
    return TokenRow(np.array(ids, np.int32), np.zeros(len(ids), bool), len(ids))


@dataclass(frozen=True)
class StageRows:
    """The rows of a stage's data, and how it reads them.

    Attributes:
        stage: name of the stage.
        config: configuration of the stage.
        mixture: rows to read, each once.
        tokenizer: the model's, with a chat template if the rows need one.
        new_tokens: ids that were added to the tokenizer.
        report: counts of the rows that were read so far.
        row_tokenizer: makes token rows of records; of prompts for ppo.
    """

    stage: str
    config: StageConfig
    mixture: Mixture
    tokenizer: Any
    new_tokens: tuple[int, ...]
    report: DataReport
    row_tokenizer: RecordTokenizer | PromptTokenizer

    @property
    def data(self) -> DataConfig:
        """Configuration of the data."""
        return self.config.data

    @property
    def records(self) -> Records:
        """Record classes that the stage reads, the preferred first."""
        return records_of(self.stage, self.config)

    @property
    def max_length(self) -> int:
        """Tokens that a row, or for ppo a prompt, may have."""
        made = self.row_tokenizer
        return made.max_length if isinstance(made, PromptTokenizer) else self.data.max_length

    def read(self) -> Iterator[tuple[RawRow, Outcome]]:
        """Yield every row with its record or with what is wrong with it; malformed rows too.

        Raises:
            DataError: the rows cannot be read, or the stage does not take them.
        """
        settings = [source.settings for source in self.mixture.sources]
        reader = RecordReader(self.data, self.stage, self.records, self.report, settings)
        return reader.outcomes(self.mixture.rows())

    def tokenize(self, rows: Iterable[tuple[RawRow, Outcome]]) -> Iterator[InspectedRow]:
        """Yield rows with their token rows, in order.

        Args:
            rows: all rows of `read`, or some of them.
        """
        pending = iter(rows)
        while chunk := list(islice(pending, CHUNK_RECORDS)):
            records = (found for _, found in chunk if isinstance(found, RecordWithSource))
            tokenized = self.row_tokenizer.tokenize(records)
            for raw, found in chunk:
                made = next(tokenized) if isinstance(found, RecordWithSource) else None
                yield InspectedRow(raw, found, made)

    def inspect(self) -> Iterator[InspectedRow]:
        """Yield every row with what became of it.

        Raises:
            DataError: the rows cannot be read, or the stage does not take them.
        """
        return self.tokenize(self.read())

    def group(self, rows: Iterable[InspectedRow]) -> Iterator[Example]:
        """Yield the examples of the kept rows: packed, split or one per record."""
        kept = (row.tokenized for row in rows if row.tokenized and not row.problem)
        first = next(kept, None)
        if first is None:
            return iter(())
        made = (one.example_rows() for one in chain([first], kept))
        if isinstance(self.row_tokenizer, PromptTokenizer):
            return made
        return self.row_tokenizer.group(made, first.source.record)

    def note_lines(self) -> list[str]:
        """Lines about what was not read of the rows so far: columns, and parts of messages."""
        report = self.report
        columns = [] if self._encoder else report.ignored_columns  # reward functions read them
        found = {
            "not written by the chat template": report.unwritten,
            "columns not read": columns,
            "files not read": [name for one in self.mixture.sources for name in one.skipped],
        }
        return [f"{what}: {shorten(', '.join(names))}" for what, names in found.items() if names]

    def examples(self, rows: Iterable[InspectedRow]) -> Examples:
        """Return the examples of the kept rows in flat arrays, as the stage trains on them."""
        return flatten(self.group(rows), self.mixture.files)

    def held_out(self) -> StageRows | None:
        """The rows that `data.eval` names or counts; None if there are none.

        Raises:
            DataError: they do not exist.
        """
        mixture = open_held_out_data(self.data, rows_stage(self.stage, self.config))
        if mixture is None:
            return None
        report = DataReport(mixture.files)
        made = _row_tokenizer(self.config, self.tokenizer, report, self._encoder)
        return replace(self, mixture=mixture, report=report, row_tokenizer=made)

    @property
    def _encoder(self) -> PromptEncoder | None:
        made = self.row_tokenizer
        return made.encoder if isinstance(made, PromptTokenizer) else None


def open_stage_rows(cfg: StageConfig, stage: str) -> StageRows:
    """Open the rows of `data.path`, each once whatever its weight, also those that are held out.

    Args:
        cfg: the whole configuration.
        stage: name of the stage.

    Raises:
        DataError: a source does not exist.
        ModelError: the tokenizer cannot be loaded, or lacks what the rows need.
    """
    sources = [
        replace(source, settings=replace(source.settings, weight=1.0))
        for source in open_sources(cfg.data, cfg.data.path, rows_stage(stage, cfg), "train")
    ]
    mixture = mix_training_rows(sources, 0, seed=0)
    report = DataReport(mixture.files)
    encoder: PromptEncoder | None = None
    new: tuple[int, ...] = ()
    if cfg.generates:
        encoder = load_prompt_encoder(cast(RolloutSettings, cfg))
        tokenizer = encoder.tokenizer
    else:
        tokenizer, new = load_row_tokenizer(cfg, stage, records_of(stage, cfg))
    made = _row_tokenizer(cfg, tokenizer, report, encoder)
    return StageRows(stage, cfg, mixture, tokenizer, new, report, made)


def _row_tokenizer(
    cfg: StageConfig, tokenizer: Any, report: DataReport, encoder: PromptEncoder | None
) -> RecordTokenizer | PromptTokenizer:
    if encoder is None:
        return RecordTokenizer(tokenizer, cfg.data, report, as_messages=cfg.as_messages)
    new = cast(RolloutSettings, cfg).sampling.max_new_tokens
    room = cfg.data.max_length - new
    return PromptTokenizer(encoder, room, cfg.data.truncation, report)

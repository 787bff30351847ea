"""Tokenize records into examples; refused and truncated rows are counted in the report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.records.reader import RecordWithSource
from rlhf_cli.data.records.types import Record, TextRecord, response_scores
from rlhf_cli.data.report import DataReport, RefusedRow
from rlhf_cli.data.tokens import packing
from rlhf_cli.data.tokens.chat_template import boundary_tokens
from rlhf_cli.data.tokens.encode import FormattedRow, TokenRow, find_special_tokens, tokenize
from rlhf_cli.data.tokens.format import RowFormatter, to_chat_record
from rlhf_cli.data.tokens.packing import Example, ExampleRow, TruncatedRow, truncate

CHUNK_CHARACTERS = 1 << 20
CHUNK_RECORDS = 512
"""Tokenized in one call: enough to use every core, few enough to hold as lists."""

FormattedRecord = tuple[tuple[FormattedRow, ...], RecordWithSource]


class RecordTokenizer:
    """Formats, tokenizes, checks, truncates and packs records.

    Args:
        tokenizer: fast tokenizer with an end-of-sequence token.
        cfg: `max_length`, `truncation`, `packing` and `train_on`.
        report: counts rows that are kept, refused and truncated.
        as_messages: render text prompts and responses by the chat template; else they are
            concatenated as they are.

    Raises:
        ModelError: the tokenizer cannot be used for training.
    """

    def __init__(
        self, tokenizer: Any, cfg: DataConfig, report: DataReport, *, as_messages: bool = False
    ) -> None:
        self.tokenizer, self.cfg, self.report = tokenizer, cfg, report
        self.as_messages = as_messages
        self.special_tokens = find_special_tokens(tokenizer)
        self.boundary_tokens = np.array(sorted(boundary_tokens(tokenizer)))
        self.formatter = RowFormatter(tokenizer, self.special_tokens, cfg.train_on)

    def examples(self, records: Iterator[RecordWithSource]) -> Iterator[Example]:
        """Yield examples in the order of the records, which all have one kind."""
        first = next(records, None)
        if first is None:
            return iter(())
        scored = response_scores(first.record) is not None
        examples = self._tokenize(chain([first], records), scored)
        if isinstance(first.record, TextRecord):
            split = (
                packing.split_and_pack_documents if self.cfg.packing else packing.split_documents
            )
            return split(chain.from_iterable(examples), self.cfg.max_length)
        if self.cfg.packing and not scored:  # preference data are not packed
            return packing.pack_rows(chain.from_iterable(examples), self.cfg.max_length)
        return examples

    def _tokenize(self, records: Iterable[RecordWithSource], scored: bool) -> Iterator[Example]:
        """Yield the rows of each record."""
        train_all = self.cfg.train_on == "all" and not scored
        start = self.special_tokens.document_start
        for chunk in split_into_chunks(self._format(records)):
            formatted = [row for rows, _ in chunk for row in rows]
            tokenized = iter(tokenize(formatted, self.tokenizer, start, train_all=train_all))
            for formatted_rows, record in chunk:
                rows = [next(tokenized) for _ in formatted_rows]
                try:
                    kept = self._check_and_truncate(rows, record.record)
                except RefusedRow as error:
                    self._count_refused(record, error)
                else:
                    self._count_kept(record, formatted_rows)
                    scores = response_scores(record.record) or [None] * len(kept)
                    yield [
                        ExampleRow(row, record.file, record.line, score)
                        for row, score in zip(kept, scores, strict=True)
                    ]

    def _format(self, records: Iterable[RecordWithSource]) -> Iterator[FormattedRecord]:
        for record in records:
            try:
                content = to_chat_record(record.record) if self.as_messages else record.record
                yield self.formatter.format(content), record
            except RefusedRow as error:
                self._count_refused(record, error)
        self.report.templated = self.formatter.used_template
        self.report.unwritten = self.formatter.unwritten

    def _count_kept(self, record: RecordWithSource, rows: Sequence[FormattedRow]) -> None:
        if isinstance(record.record, TextRecord):
            self.report.text_bytes += len(record.record.text.encode())
        if record.repeat == 0:
            self.report.kept += 1
            for note in dict.fromkeys(row.note for row in rows if row.note):
                self.report.add_note(record.location, note)

    def _count_refused(self, record: RecordWithSource, reason: RefusedRow) -> None:
        if record.repeat == 0:
            self.report.add_refused(record.location, str(reason))

    def _check_and_truncate(self, rows: list[TokenRow], record: Record) -> list[TokenRow]:
        """Return the rows within `data.max_length`.

        Raises:
            RefusedRow: they cannot be trained on.
        """
        for row in rows:
            if not row.loss_mask.any():
                raise RefusedRow("no token of a response")
            if np.isin(row.tokens[row.loss_mask], self.boundary_tokens).all():
                raise RefusedRow("only end or pad tokens to train")
        if isinstance(record, TextRecord):  # documents are split instead
            return rows
        if response_scores(record) is not None:
            rows = [row.up_to_response_end() for row in rows]
            require_same_prompt(rows)
        bos = self.special_tokens.bos
        truncated = truncate(rows, self.cfg.max_length, self.cfg.truncation, bos)
        require_different_responses(rows, truncated, self.cfg.max_length)
        self.report.add_cut("prompt start", sum(row.prompt_start for row in truncated))
        self.report.add_cut("response end", sum(row.response_end for row in truncated))
        return [row.row for row in truncated]


def split_into_chunks(records: Iterable[FormattedRecord]) -> Iterator[list[FormattedRecord]]:
    """Group formatted records that are tokenized in one call."""
    chunk: list[FormattedRecord] = []
    characters = 0
    for rows, record in records:
        chunk.append((rows, record))
        characters += sum(len(segment.text) for row in rows for segment in row.segments)
        if characters >= CHUNK_CHARACTERS or len(chunk) == CHUNK_RECORDS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def require_same_prompt(rows: Sequence[TokenRow]) -> None:
    """Require that the rows of an example have the same tokens before the response.

    Raises:
        RefusedRow: the chat template renders the prompt differently before another response.
    """
    start = rows[0].response_start
    prompt = rows[0].tokens[:start]
    for row in rows[1:]:
        if row.response_start != start or not np.array_equal(row.tokens[:start], prompt):
            raise RefusedRow("the chat template writes the prompt otherwise for another response")


def require_different_responses(
    rows: Sequence[TokenRow], truncated: Sequence[TruncatedRow], max_length: int
) -> None:
    """Require that the responses of an example are not all the same.

    Raises:
        RefusedRow: they have the same tokens, before or after truncation.
    """
    if _all_equal(rows):
        raise RefusedRow("all responses have the same tokens")
    if _all_equal([one.row for one in truncated]):
        raise RefusedRow(f"all responses are the same within data.max_length={max_length} tokens")


def _all_equal(rows: Sequence[TokenRow]) -> bool:
    first, *others = rows
    return bool(others) and all(np.array_equal(first.tokens, row.tokens) for row in others)

"""Tokenize records into examples; refused and truncated rows are counted in the report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, slots=True)
class TokenizedRecord:
    """A record with its token rows, or the reason why it is refused.

    Attributes:
        source: the record and its location.
        formatted: its rows as text; empty if the chat template does not accept the record.
        rows: its token rows, one per response; empty if the record is refused.
        refusal: reason; empty if the record is kept.
    """

    source: RecordWithSource
    formatted: tuple[FormattedRow, ...] = ()
    rows: tuple[TruncatedRow, ...] = ()
    refusal: str = ""

    def example_rows(self) -> list[ExampleRow]:
        """Return the token rows with the location and score of each."""
        scores = response_scores(self.source.record) or [None] * len(self.rows)
        return [
            ExampleRow(one.row, self.source.file, self.source.line, score)
            for one, score in zip(self.rows, scores, strict=True)
        ]


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
        kept = (one for one in self.tokenize(records) if not one.refusal)
        first = next(kept, None)
        if first is None:
            return iter(())
        rows = (one.example_rows() for one in chain([first], kept))
        return self.group(rows, first.source.record)

    def group(self, rows: Iterator[list[ExampleRow]], first: Record) -> Iterator[Example]:
        """Yield examples of the rows of each record: packed, split or one per record.

        Args:
            rows: rows of each record.
            first: the first record; all have its kind.
        """
        if isinstance(first, TextRecord):
            split = (
                packing.split_and_pack_documents if self.cfg.packing else packing.split_documents
            )
            return split(chain.from_iterable(rows), self.cfg.max_length)
        if self.cfg.packing and response_scores(first) is None:  # preference data are not packed
            return packing.pack_rows(chain.from_iterable(rows), self.cfg.max_length)
        return rows

    def tokenize(self, records: Iterable[RecordWithSource]) -> Iterator[TokenizedRecord]:
        """Yield every record with its token rows, or with the reason why it is refused."""
        start = self.special_tokens.document_start
        for chunk in split_into_chunks(self._format(records)):
            scored = response_scores(chunk[0].source.record) is not None
            train_all = self.cfg.train_on == "all" and not scored
            formatted = [row for record in chunk for row in record.formatted]
            tokenized = iter(tokenize(formatted, self.tokenizer, start, train_all=train_all))
            for record in chunk:
                yield record if record.refusal else self._fit(record, tokenized)

    def _fit(self, record: TokenizedRecord, tokenized: Iterator[TokenRow]) -> TokenizedRecord:
        """Take the token rows of a record, check and truncate them, and count the record."""
        rows = [next(tokenized) for _ in record.formatted]
        try:
            kept = self._check_and_truncate(rows, record.source.record)
        except RefusedRow as error:
            return self._refuse(record.source, error)
        self._count_kept(record.source, record.formatted)
        return replace(record, rows=tuple(kept))

    def _format(self, records: Iterable[RecordWithSource]) -> Iterator[TokenizedRecord]:
        """Yield records as text, those that the chat template does not accept with the reason."""
        for record in records:
            try:
                content = to_chat_record(record.record) if self.as_messages else record.record
                formatted = self.formatter.format(content)
            except RefusedRow as error:
                yield self._refuse(record, error)
            else:
                yield TokenizedRecord(record, formatted)
        self.report.templated = self.formatter.used_template
        self.report.unwritten = self.formatter.unwritten

    def _count_kept(self, record: RecordWithSource, rows: Sequence[FormattedRow]) -> None:
        if isinstance(record.record, TextRecord):
            self.report.text_bytes += len(record.record.text.encode())
        if record.repeat == 0:
            self.report.kept += 1
            for note in dict.fromkeys(row.note for row in rows if row.note):
                self.report.add_note(record.location, note)

    def _refuse(self, record: RecordWithSource, reason: RefusedRow) -> TokenizedRecord:
        if record.repeat == 0:
            self.report.add_refused(record.location, str(reason))
        return TokenizedRecord(record, refusal=str(reason))

    def _check_and_truncate(self, rows: list[TokenRow], record: Record) -> list[TruncatedRow]:
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
            return [TruncatedRow(row, 0, 0, row) for row in rows]
        if response_scores(record) is not None:
            rows = [row.up_to_response_end() for row in rows]
            require_same_prompt(rows)
        bos = self.special_tokens.bos
        truncated = truncate(rows, self.cfg.max_length, self.cfg.truncation, bos)
        require_different_responses(rows, truncated, self.cfg.max_length)
        self.report.add_cut("prompt start", sum(row.prompt_start for row in truncated))
        self.report.add_cut("response end", sum(row.response_end for row in truncated))
        return truncated


def split_into_chunks(records: Iterable[TokenizedRecord]) -> Iterator[list[TokenizedRecord]]:
    """Group formatted records that are tokenized in one call."""
    chunk: list[TokenizedRecord] = []
    characters = 0
    for record in records:
        chunk.append(record)
        characters += sum(len(part.text) for row in record.formatted for part in row.segments)
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

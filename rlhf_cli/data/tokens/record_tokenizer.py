"""Records into examples of token rows; whatever is refused or cut is counted in the report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.records.reader import Located
from rlhf_cli.data.records.types import Record, TextRecord, scores_of
from rlhf_cli.data.report import DataReport, Refused
from rlhf_cli.data.tokens import packing
from rlhf_cli.data.tokens.chat_template import boundary_tokens
from rlhf_cli.data.tokens.encode import Script, TokenRow, find_specials, tokenize
from rlhf_cli.data.tokens.format import ScriptWriter, as_chat
from rlhf_cli.data.tokens.packing import Example, SourceRow, Truncated, truncate

CHUNK_CHARACTERS = 1 << 20


CHUNK_ROWS = 512
"""Tokenized in one call: enough to keep every core busy, little enough to hold as lists."""


Written = tuple[tuple[Script, ...], Located]


class RowMaker:
    """Makes token rows of records.

    Args:
        tokenizer: a fast one with an end-of-sequence token.
        cfg: `max_length`, `truncation`, `packing` and `train_on`.
        report: counts what is kept, refused and cut.
        as_messages: text prompts and responses become turns of the chat template; else they are
            joined as they stand.

    Raises:
        ModelError: the tokenizer does not do what training needs.
    """

    def __init__(
        self, tokenizer: Any, cfg: DataConfig, report: DataReport, *, as_messages: bool = False
    ) -> None:
        self.tokenizer, self.cfg, self.report = tokenizer, cfg, report
        self.as_messages = as_messages
        self.specials = find_specials(tokenizer)
        self.no_text = np.array(sorted(boundary_tokens(tokenizer)))
        self.writer = ScriptWriter(tokenizer, self.specials, cfg.train_on)

    def examples(self, records: Iterator[Located]) -> Iterator[Example]:
        """Examples in the order of the records, all of which are of one kind."""
        first = next(records, None)
        if first is None:
            return iter(())
        judged = scores_of(first.record) is not None
        examples = self._rows(chain([first], records), judged)
        if isinstance(first.record, TextRecord):
            arrange = packing.cut_and_pack if self.cfg.packing else packing.cut
            return arrange(chain.from_iterable(examples), self.cfg.max_length)
        if self.cfg.packing and not judged:  # the rows that are compared stand alone
            return packing.pack(chain.from_iterable(examples), self.cfg.max_length)
        return examples

    def _rows(self, records: Iterable[Located], judged: bool) -> Iterator[Example]:
        """The rows of each record."""
        train_all = self.cfg.train_on == "all" and not judged
        start = self.specials.document_start
        for chunk in chunks(self._write(records)):
            scripts = [script for written, _ in chunk for script in written]
            rows = iter(tokenize(scripts, self.tokenizer, start, train_all=train_all))
            for written, located in chunk:
                own = [next(rows) for _ in written]
                try:
                    kept = self._fit(own, located.record)
                except Refused as error:
                    self._refuse(located, error)
                else:
                    self._count(located, written)
                    scores = scores_of(located.record) or [None] * len(kept)
                    yield [
                        SourceRow(row, located.file, located.line, score)
                        for row, score in zip(kept, scores, strict=True)
                    ]

    def _write(self, records: Iterable[Located]) -> Iterator[Written]:
        for located in records:
            try:
                record = as_chat(located.record) if self.as_messages else located.record
                yield self.writer.write(record), located
            except Refused as error:
                self._refuse(located, error)
        self.report.templated = self.writer.used_template
        self.report.unwritten = self.writer.unwritten

    def _count(self, located: Located, written: Sequence[Script]) -> None:
        if isinstance(located.record, TextRecord):
            self.report.text_bytes += len(located.record.text.encode())
        if located.copy == 0:
            self.report.kept += 1
            for note in dict.fromkeys(script.note for script in written if script.note):
                self.report.add_note(located.where, note)

    def _refuse(self, located: Located, reason: Refused) -> None:
        if located.copy == 0:
            self.report.add_refused(located.where, str(reason))

    def _fit(self, rows: list[TokenRow], record: Record) -> list[TokenRow]:
        """The rows as they are trained.

        Raises:
            Refused: there is nothing to learn from them.
        """
        for row in rows:
            if not row.trained.any():
                raise Refused("no token of a response")
            if np.isin(row.tokens[row.trained], self.no_text).all():
                raise Refused("only end or pad tokens to train")
        if isinstance(record, TextRecord):  # cut into several rows instead
            return rows
        if scores_of(record) is not None:
            rows = [row.response_alone() for row in rows]
            require_one_prompt(rows)
        cuts = truncate(rows, self.cfg.max_length, self.cfg.truncation, self.specials.bos)
        require_different(rows, cuts, self.cfg.max_length)
        self.report.add_cut("prompt start", sum(cut.prompt_start for cut in cuts))
        self.report.add_cut("response end", sum(cut.response_end for cut in cuts))
        return [cut.row for cut in cuts]


def chunks(written: Iterable[Written]) -> Iterator[list[Written]]:
    """Records' scripts in groups to be tokenized in one call."""
    chunk: list[Written] = []
    characters = 0
    for scripts, located in written:
        chunk.append((scripts, located))
        characters += sum(len(piece.text) for script in scripts for piece in script.pieces)
        if characters >= CHUNK_CHARACTERS or len(chunk) == CHUNK_ROWS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def require_one_prompt(rows: Sequence[TokenRow]) -> None:
    """All rows have the same tokens before the response.

    Raises:
        Refused: a chat template wrote the prompt otherwise before another response.
    """
    start = rows[0].response_start
    prompt = rows[0].tokens[:start]
    for row in rows[1:]:
        if row.response_start != start or not np.array_equal(row.tokens[:start], prompt):
            raise Refused("the chat template writes the prompt otherwise for another response")


def require_different(rows: Sequence[TokenRow], cut: Sequence[Truncated], max_length: int) -> None:
    """Of several responses, not all are the same: there would be nothing to choose from.

    Raises:
        Refused: they have the same tokens, in full or in what is left of them.
    """
    if _same(rows):
        raise Refused("all responses have the same tokens")
    if _same([one.row for one in cut]):
        raise Refused(f"all responses are the same within data.max_length={max_length} tokens")


def _same(rows: Sequence[TokenRow]) -> bool:
    first, *others = rows
    return bool(others) and all(np.array_equal(first.tokens, row.tokens) for row in others)

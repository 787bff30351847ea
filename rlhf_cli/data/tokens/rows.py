"""Records into examples of token rows; whatever is refused or cut is counted in the report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np

from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.records.reader import Located
from rlhf_cli.data.records.record import TextRecord
from rlhf_cli.data.records.row_errors import Refused
from rlhf_cli.data.report import DataReport
from rlhf_cli.data.tokens import packing
from rlhf_cli.data.tokens.packing import Example, SourceRow
from rlhf_cli.data.tokens.scripts import Script, ScriptWriter
from rlhf_cli.data.tokens.specials import find_specials
from rlhf_cli.data.tokens.tokenize import TokenRow, tokenize
from rlhf_cli.data.tokens.truncation import truncate

CHUNK_CHARACTERS = 1 << 20
CHUNK_ROWS = 512
"""Tokenized in one call: enough to keep every core busy, little enough to hold as lists."""

Written = tuple[Script, Located]


class RowMaker:
    """Makes token rows of records.

    Args:
        tokenizer: a fast one with an end-of-sequence token.
        cfg: `max_length`, `truncation`, `packing` and `train_on`.
        report: counts what is kept, refused and cut.

    Raises:
        ModelError: the tokenizer does not do what training needs.
    """

    def __init__(self, tokenizer: Any, cfg: DataConfig, report: DataReport) -> None:
        self.tokenizer, self.cfg, self.report = tokenizer, cfg, report
        self.specials = find_specials(tokenizer)
        special = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
        self.no_text = np.array(sorted(special - {tokenizer.unk_token_id}))
        self.writer = ScriptWriter(tokenizer, self.specials, cfg.train_on)

    def examples(self, records: Iterator[Located]) -> Iterator[Example]:
        """Examples in the order of the records, all of which are of one kind."""
        first = next(records, None)
        if first is None:
            return iter(())
        documents = isinstance(first.record, TextRecord)
        rows = self._rows(chain([first], records), documents)
        if documents:
            arrange = packing.cut_and_pack if self.cfg.packing else packing.cut
            return arrange(rows, self.cfg.max_length)
        return packing.pack(rows, self.cfg.max_length) if self.cfg.packing else one_each(rows)

    def _rows(self, records: Iterable[Located], documents: bool) -> Iterator[SourceRow]:
        train_all = self.cfg.train_on == "all"
        for chunk in chunks(self._write(records)):
            scripts = [script for script, _ in chunk]
            rows = tokenize(scripts, self.tokenizer, train_all=train_all)
            for (_, located), row in zip(chunk, rows, strict=True):
                try:
                    kept = self._fit(row, documents)
                except Refused as error:
                    self._refuse(located, error)
                else:
                    self.report.kept += located.copy == 0
                    if isinstance(located.record, TextRecord):
                        self.report.text_bytes += len(located.record.text.encode())
                    yield SourceRow(kept, located.file, located.line)

    def _write(self, records: Iterable[Located]) -> Iterator[Written]:
        for located in records:
            try:
                yield self.writer.write(located.record), located
            except Refused as error:
                self._refuse(located, error)
        self.report.templated = self.writer.used_template

    def _refuse(self, located: Located, reason: Refused) -> None:
        if located.copy == 0:
            self.report.add_refused(located.where, str(reason))

    def _fit(self, row: TokenRow, documents: bool) -> TokenRow:
        if not row.trained.any():
            raise Refused("no token of a response")
        if np.isin(row.tokens[row.trained], self.no_text).all():
            raise Refused("only special tokens to train")
        if documents:  # cut into several rows instead
            return row
        cut = truncate(row, self.cfg.max_length, self.cfg.truncation, self.specials.bos)
        self.report.add_cut("prompt start", cut.prompt_start)
        self.report.add_cut("response end", cut.response_end)
        return cut.row


def one_each(rows: Iterable[SourceRow]) -> Iterator[Example]:
    """Every row is an example."""
    return ([row] for row in rows)


def chunks(written: Iterable[Written]) -> Iterator[list[Written]]:
    """Scripts in groups to be tokenized in one call."""
    chunk: list[Written] = []
    characters = 0
    for script, located in written:
        chunk.append((script, located))
        characters += sum(len(piece.text) for piece in script.pieces)
        if characters >= CHUNK_CHARACTERS or len(chunk) == CHUNK_ROWS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk

"""Fit rows into `data.max_length`: truncate rows, pack rows, split documents.

Where a document is split, the next piece repeats the last token as context, so that every token of
the document but its first is a target exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_cli.data.report import RefusedRow
from rlhf_cli.data.tokens.encode import Ids, TokenRow

MIN_PIECE = 2
"""Fewest tokens of a piece of a document: one as context and one target."""


@dataclass(frozen=True, slots=True)
class TruncatedRow:
    """A row within the maximum length, and what it lost at each end.

    Attributes:
        row: the tokens that are kept.
        prompt_start: number of tokens lost at the start of the prompt.
        response_end: number of tokens lost at the end of the response.
        whole: the row before truncation.
        head: number of tokens that are kept before those lost at the start; 1 for a `bos` token.
    """

    row: TokenRow
    prompt_start: int
    response_end: int
    whole: TokenRow
    head: int = 0

    @property
    def lost_start(self) -> Ids:
        """Tokens lost at the start of the prompt."""
        return self.whole.tokens[self.head : self.head + self.prompt_start]

    @property
    def lost_end(self) -> Ids:
        """Tokens lost at the end of the response."""
        return self.whole.tokens[len(self.whole.tokens) - self.response_end :]


def truncate(
    rows: Sequence[TokenRow], max_length: int, policy: str, bos: int | None
) -> list[TruncatedRow]:
    """Truncate the rows of one example to at most `max_length` tokens each.

    The rows keep a common prompt: each loses as much of it as the longest row needs.

    Args:
        rows: rows of any length with the same prompt.
        max_length: tokens, at least 2.
        policy: `data.truncation`. `prompt_start` keeps a leading `bos` token, and at least one
            token of the prompt, from which the response's first token is predicted.
        bos: beginning-of-sequence token, if there is one.

    Raises:
        RefusedRow: the policy is `refuse`, or a row has no target left.
    """
    excess = max(len(row.tokens) for row in rows) - max_length
    if excess <= 0:
        return [TruncatedRow(row, 0, 0, row) for row in rows]
    if policy == "refuse":
        raise RefusedRow(f"longer than data.max_length={max_length} (data.truncation=refuse)")
    start, head = rows[0].response_start, 0
    from_prompt = 0
    if policy == "prompt_start":
        head = 1 if start and rows[0].tokens[0] == bos else 0
        from_prompt = max(0, min(excess, start - max(head, 1)))
    return [_truncate_row(row, head, from_prompt, max_length) for row in rows]


def _truncate_row(row: TokenRow, head: int, from_prompt: int, max_length: int) -> TruncatedRow:
    kept = np.ones(len(row.tokens), bool)
    kept[head : head + from_prompt] = False
    from_response = max(0, len(kept) - from_prompt - max_length)
    kept[len(kept) - from_response :] = False
    tokens, loss_mask = row.tokens[kept], row.loss_mask[kept]
    loss_mask[0] = False
    if not loss_mask.any():
        raise RefusedRow(f"no response within data.max_length={max_length} tokens")
    start = min(row.response_start - from_prompt, len(tokens))
    return TruncatedRow(TokenRow(tokens, loss_mask, start), from_prompt, from_response, row, head)


@dataclass(frozen=True, slots=True)
class ExampleRow:
    """A row of an example, with the location of its record and the score of its response."""

    row: TokenRow
    file: str
    line: int
    score: float | None = None

    def piece(self, start: int, end: int) -> ExampleRow:
        """Return tokens [start, end) as a row; its first token is only context."""
        loss_mask = self.row.loss_mask[start:end].copy()
        loss_mask[0] = False
        return ExampleRow(TokenRow(self.row.tokens[start:end], loss_mask), self.file, self.line)

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.row.tokens)


Example = list[ExampleRow]


def pack_rows(rows: Iterable[ExampleRow], max_length: int) -> Iterator[Example]:
    """Fill each example with as many whole rows, in order, as fit."""
    example: Example = []
    room = max_length
    for row in rows:
        if len(row) > room:
            yield example
            example, room = [], max_length
        example.append(row)
        room -= len(row)
    if example:
        yield example


def split_documents(documents: Iterable[ExampleRow], max_length: int) -> Iterator[Example]:
    """Split every document into pieces of at most `max_length` tokens, each an example."""
    for document in documents:
        start = 0
        while len(document) - start >= MIN_PIECE:
            yield [document.piece(start, start + max_length)]
            start += max_length - 1


def split_and_pack_documents(documents: Iterable[ExampleRow], max_length: int) -> Iterator[Example]:
    """Fill each example with documents, in order, and split the last where it is full.

    An example has `max_length` tokens, or one less if a single token would remain, which has no
    target. The last example has the remaining tokens.
    """
    example: Example = []
    room = max_length
    for document in documents:
        start = 0
        while len(document) - start >= MIN_PIECE:
            piece = document.piece(start, start + room)
            example.append(piece)
            room -= len(piece)
            start += len(piece) - 1
            if room < MIN_PIECE:
                yield example
                example, room = [], max_length
    if example:
        yield example

"""Rows into examples: several that fill an example, or documents cut into pieces.

Where a document is cut, the next piece repeats the last token as context, so that every token of
the document but its first is trained exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rlhf_cli.data.tokens.tokenize import TokenRow

MIN_PIECE = 2
"""Tokens: one to predict from and one to predict."""


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A row, where its record stands, and what a judge said of it."""

    row: TokenRow
    file: str
    line: int
    score: float | None = None

    def piece(self, start: int, end: int) -> SourceRow:
        """Tokens [start, end) as a row of their own, the first only as context."""
        trained = self.row.trained[start:end].copy()
        trained[0] = False
        return SourceRow(TokenRow(self.row.tokens[start:end], trained), self.file, self.line)

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.row.tokens)


Example = list[SourceRow]


def pack(rows: Iterable[SourceRow], max_length: int) -> Iterator[Example]:
    """Whole rows, in order, as many as fit into each example."""
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


def cut(documents: Iterable[SourceRow], max_length: int) -> Iterator[Example]:
    """Every document in pieces of at most `max_length` tokens, each an example."""
    for document in documents:
        start = 0
        while len(document) - start >= MIN_PIECE:
            yield [document.piece(start, start + max_length)]
            start += max_length - 1


def cut_and_pack(documents: Iterable[SourceRow], max_length: int) -> Iterator[Example]:
    """Documents in order, cut where an example is full.

    An example has `max_length` tokens, or one less where a single token would have been left: it
    could train nothing. The last is as long as what remains.
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

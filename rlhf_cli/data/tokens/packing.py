"""Rows into examples: truncation, several rows that fill an example, documents cut into pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_cli.data.report import Refused
from rlhf_cli.data.tokens.encode import TokenRow


@dataclass(frozen=True, slots=True)
class Truncated:
    """A row that fits, and how many tokens it lost at which end."""

    row: TokenRow
    prompt_start: int = 0
    response_end: int = 0


def truncate(
    rows: Sequence[TokenRow], max_length: int, policy: str, bos: int | None
) -> list[Truncated]:
    """Cut the rows of one example to at most `max_length` tokens each.

    They have one prompt, and keep one: all lose as much of it as the longest needs.

    Args:
        rows: of any length, with the same prompt.
        max_length: tokens, at least 2.
        policy: `data.truncation`. `prompt_start` keeps a leading beginning-of-text token, and one
            token of the prompt in any case: the response's first token is predicted from it.
        bos: the beginning-of-text token, if there is one.

    Raises:
        Refused: the policy is `refuse`, or no trained token is left in a row.
    """
    excess = max(len(row.tokens) for row in rows) - max_length
    if excess <= 0:
        return [Truncated(row) for row in rows]
    if policy == "refuse":
        raise Refused(f"longer than data.max_length={max_length} (data.truncation=refuse)")
    start, head = rows[0].response_start, 0
    from_prompt = 0
    if policy == "prompt_start":
        head = 1 if start and rows[0].tokens[0] == bos else 0
        from_prompt = max(0, min(excess, start - max(head, 1)))
    return [_cut(row, head, from_prompt, max_length) for row in rows]


def _cut(row: TokenRow, head: int, from_prompt: int, max_length: int) -> Truncated:
    kept = np.ones(len(row.tokens), bool)
    kept[head : head + from_prompt] = False
    from_response = max(0, len(kept) - from_prompt - max_length)
    kept[len(kept) - from_response :] = False
    tokens, trained = row.tokens[kept], row.trained[kept]
    trained[0] = False
    if not trained.any():
        raise Refused(f"no response within data.max_length={max_length} tokens")
    start = min(row.response_start - from_prompt, len(tokens))
    return Truncated(TokenRow(tokens, trained, start), from_prompt, from_response)


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

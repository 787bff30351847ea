"""The one shape in which tokens reach a model: rows one after another, flat, never padded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

NUMBERS = ("sizes", "owners", "common", "count")
"""Of `Rows`: held as Python numbers, not as tensors."""


@dataclass(frozen=True)
class TokenBatch:
    """A micro-batch of token rows, flat.

    Attributes:
        tokens: [N] int64, the rows one after another.
        lengths: [R] int64, > 0, summing to N.
        scored: [S] int64, rising. Position p is scored when the token after it (same row) counts.
        example_of_row: [R] int64, the index of the example that each row belongs to.
        columns: name -> [R] fp32, what is known of each row beside its tokens.
        token_columns: name -> [S] fp32 or bool, the same of each scored token. The name of a bool
            one is a unit too: the number of its tokens that are True.
        trains: False where the slope of the loss is known to be 0 in every row: then nothing but
            metrics comes of them, and no backward pass.
    """

    tokens: Tensor
    lengths: Tensor
    scored: Tensor
    example_of_row: Tensor
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    token_columns: Mapping[str, Tensor] = field(default_factory=dict)
    trains: bool = True

    @cached_property
    def sizes(self) -> list[int]:
        """`lengths` as numbers."""
        found: list[int] = self.lengths.tolist()
        return found

    @cached_property
    def owners(self) -> list[int]:
        """`example_of_row` as numbers."""
        found: list[int] = self.example_of_row.tolist()
        return found

    @cached_property
    def common(self) -> list[int]:
        """How many tokens each row begins with that all rows of its example begin with.

        Each row keeps a token of its own. 0 for a row that is alone in its example.
        """
        parts = self.tokens.split(self.sizes)
        found: list[int] = []
        for _, rows in groupby(self.owners):
            count = len(list(rows))
            found += [_alike(parts[len(found) : len(found) + count])] * count
        return found

    @cached_property
    def targets(self) -> Tensor:
        """[S] int64, the token that each scored position predicts."""
        return self.tokens[self.scored + 1]

    @cached_property
    def starts(self) -> Tensor:
        """[R] int64, where each row begins in `tokens`."""
        return self.lengths.cumsum(0) - self.lengths

    @cached_property
    def row_of_token(self) -> Tensor:
        """[N] int64, the row of each token."""
        return torch.repeat_interleave(self.lengths, output_size=len(self.tokens))

    @cached_property
    def positions(self) -> Tensor:
        """[N] int64, counted from 0 in each row."""
        index = torch.arange(len(self.tokens), device=self.tokens.device)
        return index - self.starts[self.row_of_token]

    @cached_property
    def row_of_scored(self) -> Tensor:
        """[S] int64, the row of each scored position."""
        return self.row_of_token[self.scored]

    @cached_property
    def first_of_example(self) -> Tensor:
        """[R] bool, True for the first row of each example: of a pair, the chosen one."""
        before = self.example_of_row.roll(1)
        before[:1] = -1
        return self.example_of_row != before

    @cached_property
    def count(self) -> dict[str, int]:
        """How many of each unit a loss may be divided by.

        `tokens` are scored positions, `chosen_tokens` those of the first row of each example.
        """
        first = self.first_of_example
        return {
            **_count_marked(self.token_columns),
            "tokens": len(self.scored),
            "rows": len(self.lengths),
            "examples": int(first.sum()),
            "chosen_tokens": int(first[self.row_of_scored].sum()),
        }

    def to(self, device: torch.device) -> TokenBatch:
        """The same rows on another device; what is known of them as numbers goes with them.

        To ask the device for a number is to wait until it has done all it was given.
        """
        if device == self.tokens.device:
            return self

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        rows = replace(
            self,
            tokens=moved(self.tokens),
            lengths=moved(self.lengths),
            scored=moved(self.scored),
            example_of_row=moved(self.example_of_row),
            columns={name: moved(values) for name, values in self.columns.items()},
            token_columns={name: moved(values) for name, values in self.token_columns.items()},
        )
        vars(rows).update({name: getattr(self, name) for name in NUMBERS})
        return rows

    def with_token_columns(self, columns: Mapping[str, Tensor]) -> TokenBatch:
        """The rows with these token columns in place of their own, and the numbers known of them.

        Args:
            columns: name -> [S] on the CPU.
        """
        device = self.tokens.device
        sent = {name: of.to(device, non_blocking=True) for name, of in columns.items()}
        rows = replace(self, token_columns=sent)
        count = {unit: self.count[unit] for unit in self.count if unit not in self.token_columns}
        vars(rows).update({name: getattr(self, name) for name in NUMBERS})
        vars(rows)["count"] = _count_marked(columns) | count
        return rows

    def split(self) -> Iterator[TokenBatch]:
        """Each example on its own; rows of one example stay together."""
        for example in self.example_of_row.unique_consecutive():
            kept = self.example_of_row == example
            tokens = kept[self.row_of_token]
            shift = int(tokens.nonzero()[0])
            scored = tokens[self.scored]
            yield replace(
                self,
                tokens=self.tokens[tokens],
                lengths=self.lengths[kept],
                scored=self.scored[scored] - shift,
                example_of_row=self.example_of_row[kept],
                columns={name: values[kept] for name, values in self.columns.items()},
                token_columns={n: values[scored] for n, values in self.token_columns.items()},
            )


def _count_marked(columns: Mapping[str, Tensor]) -> dict[str, int]:
    """Of each bool column, how many tokens are True."""
    return {name: int(of.sum()) for name, of in columns.items() if of.dtype == torch.bool}


def _alike(parts: Sequence[Tensor]) -> int:
    """How many tokens rows begin with alike, at most all but the last one of the shortest."""
    most = min(map(len, parts)) - 1
    if len(parts) == 1 or not most:
        return 0
    begin = torch.stack([part[:most] for part in parts])
    return int((begin == begin[0]).all(0).int().cumprod(0).sum())

"""Token batches: the flat, unpadded layout in which tokens reach a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

HOST_ATTRIBUTES = ("row_lengths", "example_ids", "shared_prefix_lengths", "count")
"""Attributes of a TokenBatch that are Python numbers, not tensors."""


@dataclass(frozen=True)
class TokenBatch:
    """A micro-batch of R token rows with N tokens and S scored positions.

    Attributes:
        tokens: [N] int64, tokens of all rows, concatenated.
        lengths: [R] int64, tokens of each row, > 0, summing to N.
        scored: [S] int64, rising positions p whose next token, in the same row, is a target.
        example_of_row: [R] int64, index of the example of each row.
        columns: name -> [R] fp32, further values of each row.
        token_columns: name -> [S] fp32 or bool, further values of each scored position. The name of
            a bool column is a unit too: its number of True positions.
        needs_backward: False if the gradient of the loss is known to be 0 in every row; then the
            batch gives only metrics, and the backward pass is skipped.
        is_filler: the batch is computed only because another rank computes one; see
            `equal_passes`. It counts nothing: its loss is multiplied by 0, its values are dropped.
    """

    tokens: Tensor
    lengths: Tensor
    scored: Tensor
    example_of_row: Tensor
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    token_columns: Mapping[str, Tensor] = field(default_factory=dict)
    needs_backward: bool = True
    is_filler: bool = False

    @cached_property
    def row_lengths(self) -> list[int]:
        """`lengths` as Python numbers."""
        found: list[int] = self.lengths.tolist()
        return found

    @cached_property
    def example_ids(self) -> list[int]:
        """`example_of_row` as Python numbers."""
        found: list[int] = self.example_of_row.tolist()
        return found

    @cached_property
    def shared_prefix_lengths(self) -> list[int]:
        """[R] tokens with which all rows of the same example begin.

        Each row keeps at least one token of its own. 0 for the only row of an example.
        """
        rows = self.tokens.split(self.row_lengths)
        found: list[int] = []
        for _, group in groupby(self.example_ids):
            count = len(list(group))
            found += [_shared_prefix_length(rows[len(found) : len(found) + count])] * count
        return found

    @cached_property
    def targets(self) -> Tensor:
        """[S] int64, the token after each scored position."""
        return self.tokens[self.scored + 1]

    @cached_property
    def row_starts(self) -> Tensor:
        """[R] int64, index of each row's first token in `tokens`."""
        return self.lengths.cumsum(0) - self.lengths

    @cached_property
    def row_of_token(self) -> Tensor:
        """[N] int64, the row of each token."""
        return torch.repeat_interleave(self.lengths, output_size=len(self.tokens))

    @cached_property
    def positions(self) -> Tensor:
        """[N] int64, position of each token in its row, from 0."""
        index = torch.arange(len(self.tokens), device=self.tokens.device)
        return index - self.row_starts[self.row_of_token]

    @cached_property
    def row_of_scored(self) -> Tensor:
        """[S] int64, the row of each scored position."""
        return self.row_of_token[self.scored]

    @cached_property
    def first_of_example(self) -> Tensor:
        """[R] bool, True for the first row of each example; in a pair, the chosen response."""
        before = self.example_of_row.roll(1)
        before[:1] = -1
        return self.example_of_row != before

    @cached_property
    def count(self) -> dict[str, int]:
        """Number of each unit by which a loss can be divided.

        `tokens` are scored positions, `chosen_tokens` those of the first row of each example.
        """
        first = self.first_of_example
        return {
            **_count_true(self.token_columns),
            "tokens": len(self.scored),
            "rows": len(self.lengths),
            "examples": int(first.sum()),
            "chosen_tokens": int(first[self.row_of_scored].sum()),
        }

    def to(self, device: torch.device) -> TokenBatch:
        """Copy the batch to another device, with its host attributes.

        Reading a number from the device would wait for all work queued on it.
        """
        if device == self.tokens.device:
            return self

        def copy(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        rows = replace(
            self,
            tokens=copy(self.tokens),
            lengths=copy(self.lengths),
            scored=copy(self.scored),
            example_of_row=copy(self.example_of_row),
            columns={name: copy(values) for name, values in self.columns.items()},
            token_columns={name: copy(values) for name, values in self.token_columns.items()},
        )
        vars(rows).update({name: getattr(self, name) for name in HOST_ATTRIBUTES})
        return rows

    def with_columns(self, columns: Mapping[str, Tensor]) -> TokenBatch:
        """Replace all columns.

        Args:
            columns: name -> [R], on any device.
        """
        sent = {name: values.to(self.tokens.device) for name, values in columns.items()}
        rows = replace(self, columns=sent)
        vars(rows).update({name: getattr(self, name) for name in HOST_ATTRIBUTES})
        return rows

    def with_token_columns(self, columns: Mapping[str, Tensor]) -> TokenBatch:
        """Replace all token columns.

        Args:
            columns: name -> [S] on the CPU, where their True positions are counted.
        """
        device = self.tokens.device
        sent = {name: values.to(device, non_blocking=True) for name, values in columns.items()}
        rows = replace(self, token_columns=sent)
        count = {unit: self.count[unit] for unit in self.count if unit not in self.token_columns}
        vars(rows).update({name: getattr(self, name) for name in HOST_ATTRIBUTES})
        vars(rows)["count"] = _count_true(columns) | count
        return rows

    def split(self) -> Iterator[TokenBatch]:
        """Yield a batch for each example."""
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


def _count_true(columns: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the number of True positions of each bool column."""
    return {
        name: int(values.sum()) for name, values in columns.items() if values.dtype == torch.bool
    }


def _shared_prefix_length(rows: Sequence[Tensor]) -> int:
    """Return the number of tokens with which all rows begin, less than the shortest row's."""
    limit = min(map(len, rows)) - 1
    if len(rows) == 1 or not limit:
        return 0
    begin = torch.stack([row[:limit] for row in rows])
    return int((begin == begin[0]).all(0).int().cumprod(0).sum())

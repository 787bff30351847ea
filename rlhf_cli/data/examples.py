"""Tokenized examples of a data set in flat arrays, and transforms of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.data.tokens.packing import Example
from rlhf_cli.errors import DataError
from rlhf_cli.memory.estimate import Rows

MAX_SHIFT = 64
"""Maximum number of examples by which `add_mismatched_responses` shifts the responses."""

ARRAYS = ("tokens", "loss_mask", "row_starts", "example_starts", "origin")
_COLUMN = "column "


@dataclass(frozen=True)
class Examples:
    """Token rows of a data set. An example is one row, or several that are never separated.

    Attributes:
        tokens: [N] int32, tokens of all rows, concatenated.
        loss_mask: [N] bool, True where the token is a target; False for a row's first token.
        row_starts: [R + 1] int64, bounds of the rows in `tokens`.
        example_starts: [E + 1] int64, bounds of the examples in the rows.
        files: names of the files of the rows.
        origin: [E, 2] int64, index into `files` and line number (from 1) of each example.
        columns: name -> [R] float32, further values of each row; `score` is its score or label.
    """

    tokens: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    row_starts: NDArray[np.int64]
    example_starts: NDArray[np.int64]
    files: tuple[str, ...]
    origin: NDArray[np.int64]
    columns: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.example_starts) - 1

    def location(self, example: int) -> str:
        """Return `file:line` of an example, for messages."""
        file, line = self.origin[example]
        return f"{self.files[file]}:{line}"

    @cached_property
    def token_starts(self) -> NDArray[np.int64]:
        """[E + 1] int64, bounds of the examples in `tokens`."""
        return self.row_starts[self.example_starts]


def examples_to_arrays(examples: Examples) -> dict[str, NDArray[Any]]:
    """Return all arrays by name, for the cache."""
    columns = {f"{_COLUMN}{name}": values for name, values in examples.columns.items()}
    return {**{name: getattr(examples, name) for name in ARRAYS}, **columns}


def examples_from_arrays(files: tuple[str, ...], arrays: Mapping[str, NDArray[Any]]) -> Examples:
    """Restore examples from `examples_to_arrays`."""
    columns = {
        name.removeprefix(_COLUMN): values
        for name, values in arrays.items()
        if name.startswith(_COLUMN)
    }
    return Examples(files=files, **{name: arrays[name] for name in ARRAYS}, columns=columns)


def flatten(examples: Iterable[Example], files: tuple[str, ...]) -> Examples:
    """Concatenate examples; `origin` is the location of an example's first row."""
    index = {name: i for i, name in enumerate(files)}
    tokens, loss_mask = bytearray(), bytearray()
    row_starts, example_starts, origin = array("q", [0]), array("q", [0]), array("q")
    scores = array("f")
    for example in examples:
        for row in example:
            tokens += row.row.tokens.tobytes()
            loss_mask += row.row.loss_mask.tobytes()
            row_starts.append(len(loss_mask))
            if row.score is not None:
                scores.append(row.score)
        example_starts.append(len(row_starts) - 1)
        origin.extend((index[example[0].file], example[0].line))
    return Examples(
        np.frombuffer(tokens, np.int32),
        np.frombuffer(loss_mask, np.bool_),
        np.frombuffer(row_starts, np.int64),
        np.frombuffer(example_starts, np.int64),
        files,
        np.frombuffer(origin, np.int64).reshape(-1, 2),
        {"score": np.frombuffer(scores, np.float32)} if scores else {},
    )


def unpair_examples(examples: Examples) -> Examples:
    """Make labelled examples of preference pairs: label 1 for chosen, 0 for rejected responses."""
    rows = len(examples.row_starts) - 1
    score = np.zeros(rows, np.float32)
    score[examples.example_starts[:-1]] = 1.0
    return replace(
        examples,
        example_starts=np.arange(rows + 1),
        origin=np.repeat(examples.origin, np.diff(examples.example_starts), axis=0),
        columns={**examples.columns, "score": score},
    )


def count_classes(examples: Examples) -> tuple[int, int]:
    """Return the number of desirable and of undesirable rows."""
    score = examples.columns["score"]
    desirable = int((score > 0.5).sum())
    return desirable, len(score) - desirable


def add_mismatched_responses(examples: Examples, max_length: int) -> Examples:
    """Add a second row to each example: its prompt with the response of another example.

    Responses are shifted by the same number of examples, so that each is used once. The shift is 1,
    or more if that gave a prompt one of its own responses, as in the rows of unpaired pairs. The
    second row has the same columns as the first.

    Args:
        examples: at least two examples of one row each. The response is the tokens from the first
            target to the end of the row.
        max_length: tokens; longer rows lose the end of the response.

    Raises:
        DataError: there is only one example.
    """
    if len(examples) < 2:
        raise DataError(
            f"{examples.location(0)} is the only row; need two at least, whose responses can be "
            "given to each other's prompts"
        )
    bounds, response = examples.row_starts, _response_starts(examples)
    shift = _choose_shift(examples, response)
    tokens: list[NDArray[np.int32]] = []
    loss_mask: list[NDArray[np.bool_]] = []
    for own in range(len(examples)):
        other = (own + shift) % len(examples)
        prompt = slice(bounds[own], response[own])
        answer = slice(response[other], bounds[other + 1])
        for parts in ((slice(bounds[own], bounds[own + 1]),), (prompt, answer)):
            tokens.append(np.concatenate([examples.tokens[p] for p in parts])[:max_length])
            loss_mask.append(np.concatenate([examples.loss_mask[p] for p in parts])[:max_length])
    lengths = [len(row) for row in tokens]
    return replace(
        examples,
        tokens=np.concatenate(tokens),
        loss_mask=np.concatenate(loss_mask),
        row_starts=np.concatenate([[0], np.cumsum(lengths)]),
        example_starts=2 * np.arange(len(examples) + 1),
        columns={name: np.repeat(values, 2) for name, values in examples.columns.items()},
    )


def _response_starts(examples: Examples) -> NDArray[np.int64]:
    """[R], index of each row's first target in `tokens`."""
    targets = np.flatnonzero(examples.loss_mask)
    return targets[np.searchsorted(targets, examples.row_starts[:-1])]


def _choose_shift(examples: Examples, response: NDArray[np.int64]) -> int:
    """Return the smallest shift that gives the fewest prompts a response to themselves."""
    ids: dict[bytes, int] = {}
    spans = zip(examples.row_starts[:-1], response, strict=True)
    texts = (examples.tokens[start:end].tobytes() for start, end in spans)
    prompts = np.array([ids.setdefault(text, len(ids)) for text in texts])
    shifts = range(1, min(len(prompts), MAX_SHIFT + 1))
    return min(shifts, key=lambda shift: int((prompts == np.roll(prompts, -shift)).sum()))


def rows_of(examples: Examples) -> Rows:
    """Lengths of the rows of a data set, for the memory model."""
    lengths = np.diff(examples.row_starts)
    return Rows(
        longest=int(lengths.max()),
        mean=float(lengths.mean()),
        rows_per_example=max(1, round(len(lengths) / len(examples))),
        scored=float(examples.loss_mask.sum() / len(lengths)),
        examples=len(examples),
    )

"""Tokenized examples, held flat; what the loader draws from and the cache stores."""

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


@dataclass(frozen=True)
class Examples:
    """Token rows of a whole data set. One example is one row, or several that never split.

    Attributes:
        tokens: [N] int32, all rows one after another.
        trained: [N] bool, True where the token is a target. A row's first token never is.
        row_starts: [R + 1] int64, bounds of the rows in `tokens`.
        example_starts: [E + 1] int64, bounds of the examples in the rows.
        files: names of the files that the rows come from.
        origin: [E, 2] int64, index into `files` and line number (1 for the first) of each example.
        columns: name -> [R] float32, what is known of each row beside its tokens; `score` is what a
            judge said of it.
    """

    tokens: NDArray[np.int32]
    trained: NDArray[np.bool_]
    row_starts: NDArray[np.int64]
    example_starts: NDArray[np.int64]
    files: tuple[str, ...]
    origin: NDArray[np.int64]
    columns: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.example_starts) - 1

    def where(self, example: int) -> str:
        """The example's `file:line`, for messages."""
        file, line = self.origin[example]
        return f"{self.files[file]}:{line}"

    @cached_property
    def token_starts(self) -> NDArray[np.int64]:
        """[E + 1] int64, bounds of the examples in `tokens`."""
        return self.row_starts[self.example_starts]


ARRAYS = ("tokens", "trained", "row_starts", "example_starts", "origin")


COLUMN = "column "


def examples_to_arrays(examples: Examples) -> dict[str, NDArray[Any]]:
    """All arrays by name; columns with a mark."""
    columns = {f"{COLUMN}{name}": values for name, values in examples.columns.items()}
    return {**{name: getattr(examples, name) for name in ARRAYS}, **columns}


def examples_from_arrays(files: tuple[str, ...], arrays: Mapping[str, NDArray[Any]]) -> Examples:
    """The examples that `examples_to_arrays` was given."""
    own = {name: arrays[name] for name in ARRAYS}
    columns = {
        name.removeprefix(COLUMN): values
        for name, values in arrays.items()
        if name.startswith(COLUMN)
    }
    return Examples(files=files, **own, columns=columns)


def flatten(examples: Iterable[Example], files: tuple[str, ...]) -> Examples:
    """Examples one after another; `origin` is where an example's first row stands."""
    index = {name: i for i, name in enumerate(files)}
    tokens, trained = bytearray(), bytearray()
    row_starts, example_starts, origin = array("q", [0]), array("q", [0]), array("q")
    scores = array("f")
    for example in examples:
        for source in example:
            tokens += source.row.tokens.tobytes()
            trained += source.row.trained.tobytes()
            row_starts.append(len(trained))
            if source.score is not None:
                scores.append(source.score)
        example_starts.append(len(row_starts) - 1)
        origin.extend((index[example[0].file], example[0].line))
    return Examples(
        np.frombuffer(tokens, np.int32),
        np.frombuffer(trained, np.bool_),
        np.frombuffer(row_starts, np.int64),
        np.frombuffer(example_starts, np.int64),
        files,
        np.frombuffer(origin, np.int64).reshape(-1, 2),
        {"score": np.frombuffer(scores, np.float32)} if scores else {},
    )


MOST_SHIFT = 64
"""Examples that a response is moved on by, at most."""


def unpair(examples: Examples) -> Examples:
    """Preference pairs as single labelled rows: 1 for each chosen response, 0 for each rejected."""
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
    """How many rows are desirable, and how many are not."""
    score = examples.columns["score"]
    desirable = int((score > 0.5).sum())
    return desirable, len(score) - desirable


def mismatch(examples: Examples, max_length: int) -> Examples:
    """A second row for each example: its prompt with the response of another example.

    Every response is given to one other prompt: all are moved on by the same number of examples.
    That is one, or more where it would give a prompt its own again: the rows of a pair that was
    taken apart have the same. The second row repeats the columns of the first.

    Args:
        examples: of one row each, at least two. The response is what is trained, to the row's end.
        max_length: tokens; the end of a response that makes a row longer is cut off.

    Raises:
        DataError: there is only one example.
    """
    if len(examples) < 2:
        raise DataError(
            f"{examples.where(0)} is the only row; need two at least, whose responses can be given "
            "to each other's prompts"
        )
    bounds, response = examples.row_starts, _response_starts(examples)
    shift = _shift(examples, response)
    tokens: list[NDArray[np.int32]] = []
    trained: list[NDArray[np.bool_]] = []
    for own in range(len(examples)):
        other = (own + shift) % len(examples)
        prompt = slice(bounds[own], response[own])
        answer = slice(response[other], bounds[other + 1])
        for parts in ((slice(bounds[own], bounds[own + 1]),), (prompt, answer)):
            tokens.append(np.concatenate([examples.tokens[p] for p in parts])[:max_length])
            trained.append(np.concatenate([examples.trained[p] for p in parts])[:max_length])
    lengths = [len(row) for row in tokens]
    return replace(
        examples,
        tokens=np.concatenate(tokens),
        trained=np.concatenate(trained),
        row_starts=np.concatenate([[0], np.cumsum(lengths)]),
        example_starts=2 * np.arange(len(examples) + 1),
        columns={name: np.repeat(values, 2) for name, values in examples.columns.items()},
    )


def _response_starts(examples: Examples) -> NDArray[np.int64]:
    """[R], index of each row's first trained token in `tokens`."""
    trained = np.flatnonzero(examples.trained)
    return trained[np.searchsorted(trained, examples.row_starts[:-1])]


def _shift(examples: Examples, response: NDArray[np.int64]) -> int:
    """The smallest shift of those that give the fewest prompts a response to themselves."""
    ids: dict[bytes, int] = {}
    spans = zip(examples.row_starts[:-1], response, strict=True)
    texts = (examples.tokens[start:end].tobytes() for start, end in spans)
    prompts = np.array([ids.setdefault(text, len(ids)) for text in texts])
    shifts = range(1, min(len(prompts), MOST_SHIFT + 1))
    return min(shifts, key=lambda shift: int((prompts == np.roll(prompts, -shift)).sum()))

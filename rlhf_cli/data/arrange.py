"""Examples made of examples: pairs taken apart, responses given to other prompts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.data.examples import Examples
from rlhf_cli.errors import DataError

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

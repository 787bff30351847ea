"""Examples made of examples: pairs taken apart, responses given to other prompts."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.data.examples import Examples
from rlhf_cli.errors import DataError


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
    """How many rows are desirable, and how many are not.

    Raises:
        DataError: there is only one class.
    """
    score = examples.columns["score"]
    desirable = int((score > 0.5).sum())
    undesirable = len(score) - desirable
    if not desirable or not undesirable:
        only = "true" if desirable else "false"
        raise DataError(
            f"{examples.where(0)} and all other rows have label {only}; need rows of both labels, "
            "or a file of pairs (prompt, chosen, rejected)"
        )
    return desirable, undesirable


def mismatch(examples: Examples, max_length: int) -> Examples:
    """A second row for each example: its prompt with the response of the next example.

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
    bounds = examples.row_starts
    response = [
        start + int(np.flatnonzero(examples.trained[start:end])[0])
        for start, end in pairwise(bounds)
    ]
    tokens: list[NDArray[np.int32]] = []
    trained: list[NDArray[np.bool_]] = []
    for own in range(len(examples)):
        other = (own + 1) % len(examples)
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

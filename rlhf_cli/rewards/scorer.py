"""Scorer interface, the check of returned scores, and the two rule-based scorers."""

from __future__ import annotations

import math
import re
import reprlib
from typing import Any, Protocol

from rlhf_cli.errors import DataError
from rlhf_cli.rewards.samples import Samples


class Scorer(Protocol):
    """Scores responses.

    Attributes:
        description: what scores, for the log.
        nbytes: memory of its model in this process, bytes; 0 without one.
    """

    description: str
    nbytes: int

    def __call__(self, samples: Samples) -> Any:
        """Scores [n], one per sample, as a list, array or tensor.

        Raises:
            DataError: the samples cannot be scored; names the config key.
        """


def check_scores(given: Any, samples: Samples, origin: str, first: int = 0) -> list[float]:
    """Convert a scorer's return value to one finite number per sample.

    Args:
        given: the return value.
        samples: samples that were scored.
        origin: config key and value of the scorer, for messages.
        first: index of the first of these samples, for messages.

    Raises:
        DataError: it is not a list of that many finite numbers.
    """
    values = given.tolist() if hasattr(given, "tolist") else given
    need = "need a list of finite numbers, one for each response"
    if not isinstance(values, list | tuple):
        raise DataError(f"{origin} gave {_format(values)}; {need}")
    if len(values) != len(samples):
        raise DataError(f"{origin} gave {len(values)} scores for {len(samples)} responses; {need}")
    scores = [_to_finite_float(value) for value in values]
    for index, score in enumerate(scores):
        if score is None:
            where = samples.describe(index, first)
            raise DataError(f"{origin} gave {_format(values[index])} for {where}; {need}")
    return [score for score in scores if score is not None]


def _to_finite_float(value: Any) -> float | None:
    plain = value.item() if getattr(value, "ndim", None) == 0 else value
    if not isinstance(plain, int | float):
        return None
    try:
        number = float(plain)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _format(value: Any) -> str:
    """Short one-line repr of a value, with its type unless it is a plain one."""
    text = " ".join(reprlib.repr(value).split())
    plain = isinstance(value, int | float | str | list | dict | tuple | type(None))
    return text if plain else f"a {type(value).__name__} ({text})"


class PatternScorer:
    """Scores 1 for a response that contains a match of a regular expression, else 0."""

    nbytes = 0

    def __init__(self, pattern: str) -> None:
        self.expression = re.compile(pattern)
        self.description = f"1 where the response has the pattern {pattern}"

    def __call__(self, samples: Samples) -> list[float]:
        """Scores [n], 1 or 0."""
        return [float(bool(self.expression.search(text))) for text in samples.responses]


class LengthPenalty:
    """Scores -`penalty` for each response token past `free`, end token included."""

    nbytes = 0

    def __init__(self, penalty: float, free: int) -> None:
        self.penalty, self.free = penalty, free
        past = f" past {free}" if free else ""
        self.description = f"-{penalty:g} for each token of the response{past}"

    def __call__(self, samples: Samples) -> list[float]:
        """Scores [n], at most 0."""
        return [-self.penalty * max(0, len(ids) - self.free) for ids in samples.response_tokens]

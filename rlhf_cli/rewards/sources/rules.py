"""Scores by rule."""

from __future__ import annotations

import re

from rlhf_cli.rewards.samples import Samples


class PatternRule:
    """1 for a response in which a regular expression is found, else 0."""

    nbytes = 0

    def __init__(self, pattern: str) -> None:
        self.expression = re.compile(pattern)
        self.described = f"1 where the response has the pattern {pattern}"

    def __call__(self, samples: Samples) -> list[float]:
        """1 or 0 for each."""
        return [float(bool(self.expression.search(text))) for text in samples.responses]


class LengthRule:
    """Minus `penalty` for each token of a response past `free`, its end token counted."""

    nbytes = 0

    def __init__(self, penalty: float, free: int) -> None:
        self.penalty, self.free = penalty, free
        past = f" past {free}" if free else ""
        self.described = f"-{penalty:g} for each token of the response{past}"

    def __call__(self, samples: Samples) -> list[float]:
        """0 or less for each."""
        return [-self.penalty * max(0, len(ids) - self.free) for ids in samples.response_tokens]

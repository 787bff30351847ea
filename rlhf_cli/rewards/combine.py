"""Several scores of a response made into one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.data.records.fields import parse_bool
from rlhf_cli.data.report import MalformedRow
from rlhf_cli.distributed import Ranks
from rlhf_cli.errors import DataError

EDGE = 1e-6
"""Least distance of a probability from 0 and 1: a logit is at most 13.8."""


def weighted_sum(by_term: Mapping[str, Tensor], weights: Sequence[float]) -> Tensor:
    """[n]: the scores of the terms, each times its weight."""
    parts = [weight * score for weight, score in zip(weights, by_term.values(), strict=True)]
    return torch.stack(parts).sum(0)


def llama2(
    safety: Tensor, helpfulness: Tensor, tagged: Tensor, threshold: float, ranks: Ranks
) -> Tensor:
    """LLaMA-2's combination of two reward models (Touvron et al. 2023, arXiv:2307.09288, 3.2.3).

    Args:
        safety: [n], probabilities.
        helpfulness: [n], probabilities.
        tagged: [n] bool, True where the prompt asks for care whatever the response is.
        threshold: under this, a response is unsafe.
        ranks: over whose responses the result is whitened.

    Returns:
        [n], fp64: the logit of safety where it counts and of helpfulness elsewhere, whitened.
    """
    chosen = torch.where(tagged | (safety < threshold), safety, helpfulness).double()
    return whiten(torch.logit(chosen.clamp(EDGE, 1 - EDGE)), ranks)


def whiten(scores: Tensor, ranks: Ranks) -> Tensor:
    """[n]: mean 0 and variance 1 over all ranks; 0 where all scores are equal."""
    every = ranks.concatenate(scores).double()
    if len(every) < 2:
        return torch.zeros_like(scores)
    variance, mean = torch.var_mean(every)
    return (scores - mean) / torch.sqrt(variance + 1e-8)


def safety_tags(columns: Mapping[str, Sequence[Any]], count: int) -> Tensor:
    """[n] bool: the column `safety` of the rows; False where it is not there or empty.

    Raises:
        DataError: a value is neither true nor false.
    """
    values = columns.get("safety", [None] * count)
    try:
        tags = [value is not None and parse_bool("safety", value) for value in values]
    except MalformedRow as error:
        raise DataError(f"column {error}, or leave it out; see reward.combine=llama2") from error
    return torch.tensor(tags, dtype=torch.bool)


class RunningDeviation:
    """Standard deviation of all numbers seen so far, on all ranks (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def observe(self, values: Sequence[float], ranks: Ranks) -> None:
        """See more numbers; those of every rank."""
        every = [value for part in ranks.gather(list(values)) for value in part]
        if not every:
            return
        mean = math.fsum(every) / len(every)
        squares = math.fsum((value - mean) ** 2 for value in every)
        total = self.count + len(every)
        away = mean - self.mean
        self.squares += squares + away**2 * self.count * len(every) / total
        self.mean += away * len(every) / total
        self.count = total

    @property
    def value(self) -> float:
        """Unbiased; 1 as long as all numbers were equal, which says nothing of their scale."""
        if self.count < 2:
            return 1.0
        deviation = math.sqrt(self.squares / (self.count - 1))
        return deviation if deviation > 1e-8 else 1.0

    def state_dict(self) -> dict[str, float]:
        """JSON values."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from what `state_dict` gave."""
        self.count = int(state["count"])
        self.mean, self.squares = state["mean"], state["squares"]

"""A metric of a model, by what each example contributes to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rlhf_cli.evaluation.bootstrap import Statistic, bootstrap, mean, ratio
from rlhf_cli.evaluation.estimate import Estimate, wilson


@dataclass(frozen=True)
class Measured:
    """What an evaluation finds out about a model.

    Attributes:
        metric: its name, as in the metrics of a run.
        columns: [n] each, a value for each example.
        statistic: of the columns, along their last axis.
        share: the value is a share, from 0 to 1.
    """

    metric: str
    columns: tuple[ArrayLike, ...]
    statistic: Statistic = mean
    share: bool = False

    @property
    def value(self) -> float:
        """The metric itself."""
        return float(self.statistic(*(np.asarray(column, np.float64) for column in self.columns)))

    def estimate(self, seed: int = 0) -> Estimate:
        """The metric with its interval.

        A share of examples has Wilson's, all else a bootstrap's. A share of parts of examples (as
        right tokens are) has Wilson's too where all or none are right, with each example counted
        once, since its parts are not independent.
        """
        n = np.size(self.columns[0])
        if self.share and n and (self.statistic is mean or self.value in (0.0, 1.0)):
            return wilson(self.value * n, n)
        return bootstrap(self.statistic, *self.columns, seed=seed)


def share_of(metric: str, right: ArrayLike) -> Measured:
    """A share of examples.

    Args:
        metric: its name.
        right: [n], 1 or True for each example that counts; a half counts for a half.
    """
    return Measured(metric, (right,), share=True)


def share_of_parts(metric: str, right: ArrayLike, parts: ArrayLike) -> Measured:
    """A share of the parts of all examples, as of their tokens.

    Args:
        metric: its name.
        right: [n], how many parts of each example count.
        parts: [n], how many it has.
    """
    return Measured(metric, (right, parts), ratio, share=True)

"""How often one model's answers are better than another's."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import ArrayLike

from rlhf_cli.evaluation.estimate import Estimate, wilson
from rlhf_cli.evaluation.ranking import order


@dataclass(frozen=True)
class Wins:
    """A comparison of two models on the same prompts.

    Attributes:
        wins: prompts whose answer scores higher than the baseline's.
        losses: prompts whose answer scores lower.
        ties: prompts with equal scores.
    """

    wins: int
    losses: int
    ties: int

    @property
    def rate(self) -> Estimate:
        """Wins / (wins + losses) with Wilson's interval; NaN where all are ties."""
        return wilson(self.wins, self.wins + self.losses)


def count_wins(own: ArrayLike, baseline: ArrayLike) -> Wins:
    """Compare scores.

    Args:
        own: [n], the score of each answer.
        baseline: [n], that of the baseline's answer to the same prompt.
    """
    found = order(own, baseline)
    return Wins(int((found > 0).sum()), int((found < 0).sum()), int((found == 0).sum()))

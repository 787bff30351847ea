"""Pairs of online DPO: the best and the worst response to each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rlhf_cli.rollout.response import Response


@dataclass(frozen=True)
class RankedPair:
    """The responses to a prompt with the highest and the lowest score.

    Attributes:
        chosen: the best response; of several with the highest score, the first.
        rejected: the worst response; of several with the lowest score, the last.
        margin: difference of their scores, >= 0.
    """

    chosen: Response
    rejected: Response
    margin: float

    @property
    def is_tie(self) -> bool:
        """Whether the pair prefers nothing: equal scores, or the same tokens twice."""
        return not self.margin > 0 or self.chosen.token_ids == self.rejected.token_ids


def rank_pairs(responses: Sequence[Response], scores: Tensor, samples: int) -> list[RankedPair]:
    """Pair the best with the worst response to each prompt (Guo et al. 2024, arXiv:2402.04792).

    Args:
        responses: `samples` to the first prompt, then to the second, and so on.
        scores: [B], of each.
        samples: responses to a prompt, >= 2.

    Returns:
        A pair for each prompt, ties among them.
    """
    found = []
    for first in range(0, len(responses), samples):
        group = scores[first : first + samples].tolist()
        best, worst = group.index(max(group)), samples - 1 - group[::-1].index(min(group))
        margin = group[best] - group[worst]
        found.append(RankedPair(responses[first + best], responses[first + worst], margin))
    return found


def penalize_missing_end(scores: Tensor, responses: Sequence[Response], penalty: float) -> Tensor:
    """[B]: scores, less `penalty` for each response that did not end by itself."""
    return scores - penalty * scores.new_tensor([float(not one.finished) for one in responses])

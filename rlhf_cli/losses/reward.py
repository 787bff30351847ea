"""Losses of a reward model: from comparisons, scores or labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def pair_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Comparison of two responses (Bradley and Terry 1952; Touvron et al. 2023, arXiv:2307.09288).

    Args:
        chosen: [B], score of the better response, no unit.
        rejected: [B], of the other.
        margin: [B], by how much the scores should differ at least (Llama 2, eq. 2); 0 for none.

    Returns:
        [B], nats, not reduced: -log sigmoid(chosen - rejected - margin). ln 2 for equal scores.
    """
    return -logsigmoid(chosen - rejected - margin)


def centering_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """[B]: (r_w + r_l)^2: holds scores around 0 (Eisenstein et al. 2023, arXiv:2312.09244)."""
    return (chosen + rejected) ** 2


@dataclass(frozen=True)
class Comparisons:
    """All pairs of rows of one example that are not ties.

    Attributes:
        better: [P] int64, row with the higher score.
        worse: [P] int64, the other row.
        share: [P], 1 / number of the example's pairs.
    """

    better: Tensor
    worse: Tensor
    share: Tensor


def comparisons(example: Tensor, score: Tensor) -> Comparisons:
    """The ordered pairs of each ranking (Ouyang et al. 2022, arXiv:2203.02155, section 3.5).

    Args:
        example: [R] int64, to which example each row belongs; rows of one stand together.
        score: [R], what the data say of each row; higher is better.
    """
    together = example[:, None] == example[None, :]
    better, worse = (together & (score[:, None] > score[None, :])).nonzero(as_tuple=True)
    _, place, count = example[better].unique_consecutive(return_inverse=True, return_counts=True)
    return Comparisons(better, worse, 1 / count[place].to(score.dtype))


def ranking_loss(scores: Tensor, found: Comparisons) -> Tensor:
    """InstructGPT's loss of rankings (arXiv:2203.02155, eq. 1), by pair.

    Args:
        scores: [R], the model's, of all rows.
        found: the pairs among them.

    Returns:
        [P], nats: each pair's loss times its share, so that the sum over an example's pairs is the
        mean of their losses.
    """
    return pair_loss(scores[found.better], scores[found.worse]) * found.share


def regression_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """[R]: (score - target)^2."""
    return (scores - targets) ** 2


def binary_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """[R], nats: cross-entropy of P(desirable) = sigmoid(score) with labels of 1 or 0."""
    return torch.nn.functional.binary_cross_entropy_with_logits(
        scores, labels.to(scores.dtype), reduction="none"
    )

"""Losses of a reward model: from comparisons, scores or labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Bradley-Terry loss per pair (Bradley and Terry 1952), with an optional margin.

    Args:
        chosen: [B], score of the chosen response, no unit.
        rejected: [B], score of the rejected response.
        margin: [B], least difference of the scores (Llama 2, Touvron et al. 2023,
            arXiv:2307.09288, eq. 2); 0 for none.

    Returns:
        [B], nats, not reduced: -log sigmoid(chosen - rejected - margin). ln 2 for equal scores.
    """
    return -logsigmoid(chosen - rejected - margin)


def centering_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Regularizer that centers scores at 0 (Eisenstein et al. 2023, arXiv:2312.09244).

    Args:
        chosen: [B], score of the chosen response.
        rejected: [B], score of the rejected response.

    Returns:
        [B], not reduced: (r_w + r_l)^2.
    """
    return (chosen + rejected) ** 2


@dataclass(frozen=True)
class Comparisons:
    """All pairs of rows of one example whose scores differ.

    Attributes:
        better: [P] int64, row with the higher score.
        worse: [P] int64, row with the lower score.
        share: [P], 1 / number of the example's pairs.
    """

    better: Tensor
    worse: Tensor
    share: Tensor


def comparisons(example: Tensor, score: Tensor) -> Comparisons:
    """Ordered pairs of each ranking (Ouyang et al. 2022, arXiv:2203.02155, section 3.5).

    Args:
        example: [R] int64, example of each row; rows of one example are adjacent.
        score: [R], score of each row in the data; higher is better.
    """
    same = example[:, None] == example[None, :]
    better, worse = (same & (score[:, None] > score[None, :])).nonzero(as_tuple=True)
    _, group, count = example[better].unique_consecutive(return_inverse=True, return_counts=True)
    return Comparisons(better, worse, 1 / count[group].to(score.dtype))


def ranking_loss(scores: Tensor, pairs: Comparisons) -> Tensor:
    """InstructGPT's ranking loss per pair (arXiv:2203.02155, eq. 1).

    Args:
        scores: [R], reward model's score of each row.
        pairs: ordered pairs of the rows.

    Returns:
        [P], nats: loss of each pair times its share, so that the sum over an example's pairs is
        the mean of their losses.
    """
    return bradley_terry_loss(scores[pairs.better], scores[pairs.worse]) * pairs.share


def regression_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Squared error of scores [R] against targets [R]; [R], not reduced."""
    return (scores - targets) ** 2


def binary_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of sigmoid(score) with labels 1 or 0; [R], nats, not reduced."""
    return torch.nn.functional.binary_cross_entropy_with_logits(
        scores, labels.to(scores.dtype), reduction="none"
    )

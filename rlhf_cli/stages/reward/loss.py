"""Loss of a reward model, by the kind of its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.errors import ConfigError, DataError
from rlhf_cli.losses.reduction import LossOutput, LossTerm, Metrics, mean_metric
from rlhf_cli.losses.reward import (
    binary_loss,
    bradley_terry_loss,
    centering_loss,
    comparisons,
    ranking_loss,
    regression_loss,
)
from rlhf_cli.models.reward_model import RewardModel
from rlhf_cli.stages.reward.config import RewardConfig
from rlhf_cli.train.row_loss import RowLoss, RowValues, row_tokens, split_pairs

LOSSES_OF_KIND = {
    "preference": ("comparison",),
    "ranked": ("comparison", "regression"),
    "scored": ("regression",),
    "scored_text": ("regression",),
    "labelled": ("binary",),
    "labelled_text": ("binary",),
}
"""Loss types that each record kind allows, the default first."""


def reward_loss(cfg: RewardConfig, model: RewardModel, kind: str) -> RowLoss:
    """Choose the loss for the rows' record kind.

    Args:
        cfg: `loss_type` and `center_coefficient`.
        model: the reward model.
        kind: record kind of the rows.

    Raises:
        DataError: the rows do not have what the loss needs.
        ConfigError: `center_coefficient` is given with a loss that does not read it.
    """

    def values(rows: TokenBatch) -> RowValues:
        return {
            "score": model(rows),
            "target": rows.columns["score"],
            "length": row_tokens(rows),
            "example": rows.example_of_row,
        }

    return RowLoss(values, _loss_of(cfg, kind))


def _loss_of(cfg: RewardConfig, kind: str) -> Callable[[RowValues], LossOutput]:
    allowed = LOSSES_OF_KIND.get(kind)
    if allowed is None:
        raise DataError(
            f"data.path: the sources hold different kinds of rows ({kind}); need one kind. Train "
            "on one after the other, with model= the run before"
        )
    chosen = allowed[0] if cfg.loss_type == "auto" else cfg.loss_type
    if chosen not in allowed:
        raise DataError(
            f"loss_type: got {cfg.loss_type}, but the rows are of kind {kind}; need "
            f"{' or '.join(allowed)}. Try loss_type=auto"
        )
    if chosen != "comparison":
        if cfg.center_coefficient:
            raise ConfigError(
                f"center_coefficient: got {cfg.center_coefficient}, but the rows are of kind "
                f"{kind}, whose loss ({chosen}) fixes where 0 is. Try center_coefficient=0"
            )
        return _regression if chosen == "regression" else _binary
    compare = _pairs if kind == "preference" else _rankings

    def loss(values: RowValues) -> LossOutput:
        return compare(values, cfg.center_coefficient)

    return loss


def _pairs(values: RowValues, center: float) -> LossOutput:
    chosen, rejected = split_pairs(values["score"])
    margin, _ = split_pairs(values["target"])
    losses = bradley_terry_loss(chosen, rejected, margin)
    share = _ones(chosen)
    output = _compared(losses, chosen, rejected, share, center, values["score"])
    of_length = _length_metrics(chosen - rejected, *split_pairs(values["length"]), share)
    return replace(output, metrics={**output.metrics, **of_length})


def _rankings(values: RowValues, center: float) -> LossOutput:
    found = comparisons(values["example"], values["target"])
    score = values["score"]
    better, worse = score[found.better], score[found.worse]
    output = _compared(ranking_loss(score, found), better, worse, found.share, center, score)
    length = values["length"]
    of_length = _length_metrics(
        better - worse, length[found.better], length[found.worse], found.share
    )
    return replace(output, metrics={**output.metrics, **of_length})


def _compared(
    losses: Tensor, better: Tensor, worse: Tensor, share: Tensor, center: float, score: Tensor
) -> LossOutput:
    """Terms and metrics of compared scores; the shares of an example's comparisons sum to 1."""
    terms = {"comparison": LossTerm(losses.sum(), "examples")}
    if center:
        squares = centering_loss(better, worse) * share
        terms["centering"] = LossTerm(squares.sum(), "examples", center)
    apart, examples = (better - worse).detach(), share.sum()
    return LossOutput(
        terms,
        {
            "accuracy": (((apart > 0) * share).sum(), examples),
            "margin": ((apart * share).sum(), examples),
            "score": mean_metric(score),
        },
    )


def _length_metrics(apart: Tensor, better: Tensor, worse: Tensor, share: Tensor) -> Metrics:
    """How often length alone ranks as labeled, and how often the model prefers the longer one.

    Args:
        apart: [P], score of the better response minus that of the other.
        better: [P], tokens of the better response.
        worse: [P], tokens of the other.
        share: [P], weight of each comparison.
    """
    longer = (better - worse).sign()
    agrees = (apart.detach().sign() * longer).clamp(min=0)
    differ = longer.abs() * share
    return {
        "accuracy_longer": (((longer + 1) / 2 * share).sum(), share.sum()),
        "prefers_longer": ((agrees * share).sum(), differ.sum()),
    }


def _regression(values: RowValues) -> LossOutput:
    score, target = values["score"], values["target"]
    losses = regression_loss(score, target)
    off = (score.detach() - target).abs()
    return LossOutput(
        {"regression": LossTerm(losses.sum(), "rows")},
        {"absolute_error": mean_metric(off), "score": mean_metric(score)},
    )


def _binary(values: RowValues) -> LossOutput:
    score, label = values["score"], values["target"]
    right = (score.detach() > 0) == (label > 0.5)
    return LossOutput(
        {"binary": LossTerm(binary_loss(score, label).sum(), "rows")},
        {"accuracy": mean_metric(right.float()), "score": mean_metric(score)},
    )


def _ones(values: Tensor) -> Tensor:
    return values.detach().new_ones(len(values))

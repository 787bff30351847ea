"""Unpaired preference data: single responses with a label, for bco and dpo's kto."""

from __future__ import annotations

from dataclasses import replace

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.evaluation.intervals import Measurement
from rlhf_cli.evaluation.metrics import metrics_by_label
from rlhf_cli.losses.reduction import Metrics
from rlhf_cli.models.policy import Policy
from rlhf_cli.stages.reference import RowReference
from rlhf_cli.train.row_loss import RowValues, row_logprobs


def labelled_row_values(policy: Policy, reference: RowReference, rows: TokenBatch) -> RowValues:
    """Values that the loss of a labelled row depends on, [R] each."""
    return {
        "logp": row_logprobs(policy(rows), rows),
        "reference": reference(rows),
        "label": rows.columns["score"],
    }


def select_by_label(label: Tensor, desirable: float, undesirable: float) -> Tensor:
    """[R]: `desirable` for rows with label 1, `undesirable` for rows with label 0."""
    return torch.where(label > 0.5, desirable, undesirable)


def label_metrics(reward: Tensor, label: Tensor, logp: Tensor) -> Metrics:
    """Mean reward β (log p - log p_ref) and log-prob of each class, nats."""
    found: Metrics = {}
    for name, side in (("chosen", label > 0.5), ("rejected", label <= 0.5)):
        count = side.sum()
        found[f"rewards/{name}"] = (torch.where(side, reward.detach(), 0).sum(), count)
        found[f"logps/{name}"] = (torch.where(side, logp.detach(), 0).sum(), count)
    return found


def reward_separation(reward: ArrayLike, label: ArrayLike) -> list[Measurement]:
    """AUC and class means of rewards [R], nats, with labels [R], 1 or 0."""
    return [
        one if one.metric == "auc" else replace(one, metric=f"rewards/{one.metric}")
        for one in metrics_by_label(reward, label)
    ]

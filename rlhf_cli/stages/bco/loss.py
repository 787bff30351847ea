"""The loss of labelled responses, and the numbers that go on from step to step."""

from __future__ import annotations

from typing import Any

import torch

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.losses.bco import Delta, bco_loss
from rlhf_cli.losses.reduce import LossOutput, Term
from rlhf_cli.models.policy import Policy
from rlhf_cli.stages.bco.config import BCOConfig
from rlhf_cli.stages.bco.udm import WEIGHT, PromptClassifier
from rlhf_cli.stages.reference import RowReference
from rlhf_cli.stages.unpaired import label_metrics, labelled_row_values, select_by_label
from rlhf_cli.train.row_loss import RowLoss, RowValues
from rlhf_cli.train.step_source import StageState


class BCOState(StageState):
    """What a checkpoint of BCO holds beside weights: the reward shift and the prompt classifier."""

    def __init__(self, delta: Delta, classifier: PromptClassifier | None) -> None:
        self.delta, self.classifier = delta, classifier

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        numbers = self.classifier and {
            "weight": self.classifier.weight,
            "bias": self.classifier.bias,
        }
        return {"delta": self.delta.state_dict(), "classifier": numbers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the shift back; the classifier was taken from there when the run was opened."""
        self.delta.load_state_dict(state["delta"])


def bco_row_loss(cfg: BCOConfig, policy: Policy, reference: RowReference, delta: Delta) -> RowLoss:
    """BCO over labelled rows; delta takes in each step's rewards before its loss."""

    def values(rows: TokenBatch) -> RowValues:
        found = dict(labelled_row_values(policy, reference, rows))
        if WEIGHT in rows.columns:
            found[WEIGHT] = rows.columns[WEIGHT]
        return found

    def observe(values: RowValues) -> None:
        delta.update(cfg.beta * (values["logp"] - values["reference"]), values["label"])

    def loss(values: RowValues) -> LossOutput:
        label, reward = values["label"], cfg.beta * (values["logp"] - values["reference"])
        losses = bco_loss(reward, label, delta.value)
        losses = losses * select_by_label(label, cfg.desirable_weight, cfg.undesirable_weight)
        if WEIGHT in values:
            losses = losses * values[WEIGHT]
        metrics = label_metrics(reward, label, values["logp"])
        metrics["delta"] = (torch.tensor(delta.value), 1.0)
        return LossOutput({"bco": Term(losses.sum(), "rows")}, metrics)

    return RowLoss(values, loss, observe)

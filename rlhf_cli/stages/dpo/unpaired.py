"""KTO: rows with a label, each beside its prompt with another row's response."""

from __future__ import annotations

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.dataset import LoadedExamples
from rlhf_cli.data.examples import Examples, add_mismatched_responses
from rlhf_cli.losses.kto import kto_loss, reference_point
from rlhf_cli.losses.reduce import LossOutput, Term
from rlhf_cli.models.policy import Policy
from rlhf_cli.stages.dpo.config import DPOConfig
from rlhf_cli.stages.labelled import by_class, label_metrics, label_values, labelled
from rlhf_cli.stages.reference import Reference
from rlhf_cli.train.row_loss import RowLoss, RowValues
from rlhf_cli.train.sequence import split_pairs


def with_mismatched(loaded: LoadedExamples, role: str, *, max_length: int) -> Examples:
    """Examples of two rows each: a labelled one, and its prompt with the next row's response."""
    return add_mismatched_responses(labelled(loaded, role), max_length)


def unpaired_loss(cfg: DPOConfig, policy: Policy, reference: Reference) -> RowLoss:
    """KTO over the first row of each example; the second gives the reference point."""

    def values(rows: TokenBatch) -> RowValues:
        return label_values(policy, reference, rows)

    def of(values: RowValues) -> LossOutput:
        s, mismatched = split_pairs(values["logp"] - values["reference"])
        label, _ = split_pairs(values["label"])
        logp, _ = split_pairs(values["logp"])
        z = reference_point(mismatched)
        losses = kto_loss(s, label, z, beta=cfg.beta)
        losses = losses * by_class(label, cfg.desirable_weight, cfg.undesirable_weight)
        metrics = label_metrics(cfg.beta * s, label, logp) | {"kl": (z, 1.0)}
        return LossOutput({"kto": Term(losses.sum(), "examples")}, metrics)

    return RowLoss(values, of, couples=True)

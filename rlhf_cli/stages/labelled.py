"""What the losses of single labelled responses share: BCO, and DPO's kto."""

from __future__ import annotations

from dataclasses import replace

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from rlhf_cli.context import say
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.dataset import LoadedExamples
from rlhf_cli.data.examples import Examples, count_classes, unpair_examples
from rlhf_cli.data.records.types import LabelledRecord, PreferenceRecord
from rlhf_cli.errors import DataError
from rlhf_cli.evaluation.measured import Measured
from rlhf_cli.evaluation.ranking import by_label
from rlhf_cli.losses.reduce import Metrics
from rlhf_cli.models.policy import Policy
from rlhf_cli.stages.reference import Reference
from rlhf_cli.train.row_loss import RowValues
from rlhf_cli.train.sequence import row_logprobs

RECORDS: tuple[type, ...] = (LabelledRecord, PreferenceRecord)


def labelled(loaded: LoadedExamples, role: str = "training") -> Examples:
    """Examples of one labelled row each; pairs are taken apart.

    Args:
        loaded: rows with labels, or pairs.
        role: what the rows are for, `training` or `held-out`; for the line that counts them.

    Raises:
        DataError: training rows are all of one class; of held-out rows, what one class has is
            measured.
    """
    examples, report = loaded
    require_one_kind(report.kind)
    rows = unpair_examples(examples) if report.kind == "preference" else examples
    desirable, undesirable = count_classes(rows)
    both = desirable and undesirable
    if role == "training" and not both:
        only = "true" if desirable else "false"
        raise DataError(
            f"{rows.location(0)} and all other rows have label {only}; need rows of both labels, "
            "or a file of pairs (prompt, chosen, rejected)"
        )
    ratio = f"1 to {undesirable / desirable:.2f}" if both else "one class only: no auc"
    say(f"labels of {role} rows: {desirable:,} desirable, {undesirable:,} undesirable ({ratio})")
    return rows


def require_one_kind(kind: str) -> None:
    """Refuse rows of which some are judged in another way than others.

    Args:
        kind: of the report on the rows.

    Raises:
        DataError: names the kinds.
    """
    if "," in kind:
        raise DataError(
            f"data.path: the sources hold different kinds of rows ({kind}); need one kind"
        )


def label_values(policy: Policy, reference: Reference, rows: TokenBatch) -> RowValues:
    """Numbers of each row that its loss depends on."""
    return {
        "logp": row_logprobs(policy(rows), rows),
        "reference": reference(rows),
        "label": rows.columns["score"],
    }


def by_class(label: Tensor, desirable: float, undesirable: float) -> Tensor:
    """[R]: one number for rows with label 1, another for those with 0."""
    return torch.where(label > 0.5, desirable, undesirable)


def label_metrics(reward: Tensor, label: Tensor, logp: Tensor) -> Metrics:
    """Means over the rows of each class; reward is beta * (log p - log p_ref), nats."""
    found: Metrics = {}
    for name, side in (("chosen", label > 0.5), ("rejected", label <= 0.5)):
        count = side.sum()
        found[f"rewards/{name}"] = (torch.where(side, reward.detach(), 0).sum(), count)
        found[f"logps/{name}"] = (torch.where(side, logp.detach(), 0).sum(), count)
    return found


def separation(reward: ArrayLike, label: ArrayLike) -> list[Measured]:
    """Metrics of rewards [R], nats, of rows with a label [R], 1 or 0; of one class its mean."""
    return [
        one if one.metric == "auc" else replace(one, metric=f"rewards/{one.metric}")
        for one in by_label(reward, label)
    ]

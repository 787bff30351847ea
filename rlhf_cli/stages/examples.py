"""The examples that a stage makes of its loaded rows; without torch."""

from __future__ import annotations

from typing import Any

from rlhf_cli.console import logger
from rlhf_cli.data.dataset import LoadedExamples
from rlhf_cli.data.examples import (
    Examples,
    add_mismatched_responses,
    count_classes,
    unpair_examples,
)
from rlhf_cli.errors import DataError


def stage_examples(
    stage: str, cfg: Any, loaded: LoadedExamples, role: str = "training"
) -> Examples:
    """Make a stage's examples of its loaded rows.

    Args:
        stage: name of the stage.
        cfg: its configuration.
        loaded: rows of `stages.records.records_of`.
        role: `training` or `held-out`.

    Raises:
        DataError: the rows lack what the stage needs.
    """
    if stage == "bco":
        return unpaired_examples(loaded, role)
    if stage == "dpo" and cfg.unpaired:
        return kto_examples(loaded, role, max_length=cfg.data.max_length)
    return loaded[0]


def unpaired_examples(loaded: LoadedExamples, role: str = "training") -> Examples:
    """Make examples of one labelled row each; pairs are split in two.

    Args:
        loaded: labelled rows, or pairs.
        role: `training` or `held-out`; training rows need both labels.

    Raises:
        DataError: all training rows have the same label.
    """
    examples, report = loaded
    require_one_kind(report.kind)
    rows = unpair_examples(examples) if report.kind == "preference" else examples
    desirable, undesirable = count_classes(rows)
    report.labels = {"desirable": desirable, "undesirable": undesirable}
    both = desirable and undesirable
    if role == "training" and not both:
        only = "true" if desirable else "false"
        raise DataError(
            f"{rows.location(0)} and all other rows have label {only}; need rows of both labels, "
            "or a file of pairs (prompt, chosen, rejected)"
        )
    ratio = f"1 to {undesirable / desirable:.2f}" if both else "one class only: no auc"
    logger.info(
        f"labels of {role} rows: {desirable:,} desirable, {undesirable:,} undesirable ({ratio})"
    )
    return rows


def require_one_kind(kind: str) -> None:
    """Check that all rows are of one record kind.

    Args:
        kind: `DataReport.kind`; several kinds are separated by commas.

    Raises:
        DataError: there are several; the message names them.
    """
    if "," in kind:
        raise DataError(
            f"data.path: the sources hold different kinds of rows ({kind}); need one kind"
        )


def kto_examples(loaded: LoadedExamples, role: str, *, max_length: int) -> Examples:
    """Make KTO's examples of two rows: a labelled one, and its prompt with another response."""
    return add_mismatched_responses(unpaired_examples(loaded, role), max_length)

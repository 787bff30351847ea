"""The teacher of a distillation run, where it is in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from rlhf_cli.console import logger
from rlhf_cli.context import RunContext
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.errors import ModelError
from rlhf_cli.kernels.divergence import DivergenceSum, OutputStates
from rlhf_cli.losses.distillation import Divergence
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.wrapper import read_head
from rlhf_cli.stages.distill.config import ADAPTER_OFF, DistillConfig
from rlhf_cli.stages.prepare_data import RunData
from rlhf_cli.stages.reference import OtherModel, load_other_policy


@dataclass(frozen=True)
class TeacherModel:
    """A frozen model that a student is compared with.

    Attributes:
        policy: computes the distributions; the student itself where both use one base.
        role: adapters that are on meanwhile.
    """

    policy: Policy
    role: str = "policy"

    def compare(
        self,
        student: Policy,
        rows: TokenBatch,
        divergence: Divergence,
        want: Iterable[str] = (),
        **logprobs: Any,
    ) -> DivergenceSum:
        """Compute the divergence of a student at the scored tokens; see `Policy.divergence`.

        Args:
            student: gets the gradient.
            rows: on its device.
            divergence: kind and temperature.
            want: further values.
            logprobs: `logprobs_at` and `sampled`, for the log-probs of the rows' own tokens.
        """
        teacher: OutputStates | str = self.role
        if self.policy is not student:
            with torch.no_grad():
                teacher = self.policy.output_states(rows)
        found: DivergenceSum = student.divergence(rows, teacher, divergence, want, **logprobs)
        return found


def load_teacher(
    cfg: DistillConfig, student: Policy, data: RunData, ctx: RunContext
) -> TeacherModel:
    """Load the teacher of a run.

    Args:
        cfg: `teacher` names the weights.
        student: as it starts.
        data: the student's tokenizer, and rows that have to fit the teacher.
        ctx: device and compute type.

    Raises:
        ModelError: there is no such model, or it has another vocabulary.
        ConfigError: rows are longer than its positions.
    """
    if cfg.teacher == ADAPTER_OFF:
        return _without_adapter(student)
    other = OtherModel(
        "teacher",
        "teacher",
        cfg.teacher,
        cfg.teacher_revision,
        cfg.teacher_load,
        seed=(cfg.seed + 1) % 2**32,  # not the weights of a student of the same shape
    )
    teacher = load_other_policy(other, cfg.model, cfg.kernels, student, data, ctx)
    require_equal_rows(teacher, student, cfg.teacher)
    logger.info(f"teacher: {cfg.teacher}")
    return TeacherModel(teacher)


def _without_adapter(student: Policy) -> TeacherModel:
    adapters = student.adapters
    if adapters is None or "reference" not in adapters.roles:
        raise ModelError(
            "teacher: got adapter_off, but the adapter at model.path is trained on, so what is "
            "below it is not what training starts from. Try adapter.start=stack"
        )
    logger.info(f"teacher: {adapters.source.describe()} (the student without its new adapter)")
    return TeacherModel(student, "reference")


def require_equal_rows(teacher: Policy, student: Policy, path: str) -> None:
    """Check that both distributions are over the same token ids.

    Rows of an output layer beyond the tokenizer's ids are left out of both.

    Raises:
        ModelError: one of them has no row for some token.
    """
    own, theirs = token_rows(student), token_rows(teacher)
    if own != theirs:
        raise ModelError(
            f"teacher: {path} gives probabilities to {theirs} tokens of the vocabulary, the "
            f"student to {own}; need a teacher with an output for each of them"
        )


def token_rows(policy: Policy) -> int:
    """Number of token ids that a model gives probabilities to."""
    support = policy.support
    if support is not None:
        return support.stop - len(support.holes)
    return len(read_head(policy.model).weight)

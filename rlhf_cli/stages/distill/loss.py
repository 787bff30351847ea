"""Loss of distillation: the divergence from the teacher at each token of a response."""

from __future__ import annotations

import torch

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.losses.distillation import Divergence, sampled_reverse_kl_loss
from rlhf_cli.losses.likelihood import nll_loss
from rlhf_cli.losses.reduction import LossOutput, LossTerm, Metrics, mean_metric
from rlhf_cli.models.policy import Policy
from rlhf_cli.stages.distill.config import DistillConfig
from rlhf_cli.stages.distill.teacher import TeacherModel
from rlhf_cli.train.row_loss import row_sums

RESPONSE = "response"
"""Column of rows that the student wrote: the index of the response among this rank's."""

SAMPLED = "sampled"
"""Token column of such rows, True for the tokens that the student sampled."""

TEACHER_LOGPROBS = "teacher_logprobs"
"""Token column of such rows: log-probs under a teacher that is a server, nats."""


def divergence_of(cfg: DistillConfig) -> Divergence:
    """The configured divergence."""
    return Divergence(cfg.divergence, cfg.jsd_beta, cfg.divergence_temperature)


class DistillLoss:
    """Loss of a micro-batch; each token weighs the same, whoever wrote it.

    Args:
        cfg: divergence and coefficients.
        student: is trained.
        teacher: computes whole distributions; none where rows have a server's log-probs.

    Attributes:
        of_response: index of a response among this rank's -> its divergence, nats, summed over its
            tokens, in the last update.
    """

    def __init__(self, cfg: DistillConfig, student: Policy, teacher: TeacherModel | None) -> None:
        self.cfg, self.student, self.teacher = cfg, student, teacher
        self.divergence = divergence_of(cfg)
        self.of_response: dict[int, float] = {}

    def __call__(self, rows: TokenBatch) -> LossOutput:
        """Compute the loss of a micro-batch."""
        if self.teacher is None:
            return self._sampled(rows)
        on_policy = SAMPLED in rows.token_columns
        with_nll = self.cfg.sft_coef > 0 and not on_policy
        found = self.teacher.compare(
            self.student, rows, self.divergence, ("entropy",), logprobs=with_nll
        )
        terms = {"divergence": LossTerm(found.total, "tokens")}
        where = "student" if on_policy else "data"
        metrics: Metrics = {
            f"divergence/{where}": mean_metric(found.tokens),
            "policy/entropy": mean_metric(found.extra["entropy"]),
        }
        if found.logp is not None:
            nll = nll_loss(found.logp)
            terms["sft"] = LossTerm(nll.sum(), "tokens", self.cfg.sft_coef)
            metrics["loss/sft"] = mean_metric(nll)
        if on_policy:
            self._note(rows, found.tokens)
        return LossOutput(terms, metrics)

    def _sampled(self, rows: TokenBatch) -> LossOutput:
        """Loss at the sampled tokens alone, by the log-probs of a server."""
        out = self.student(rows, want=("logp", "entropy"), sampled=True)
        losses = sampled_reverse_kl_loss(out.logp, rows.token_columns[TEACHER_LOGPROBS])
        assert out.entropy is not None
        metrics: Metrics = {
            "divergence/student": mean_metric(losses),
            "policy/entropy": mean_metric(out.entropy),
        }
        self._note(rows, losses)
        return LossOutput({"divergence": LossTerm(losses.sum(), "tokens")}, metrics)

    def _note(self, rows: TokenBatch, tokens: torch.Tensor) -> None:
        """Keep the divergence of each response for the log."""
        if rows.is_filler or RESPONSE not in rows.columns:
            return
        sums = row_sums(tokens.detach(), rows).tolist()
        numbers = map(int, rows.columns[RESPONSE].tolist())
        self.of_response.update(zip(numbers, sums, strict=True))

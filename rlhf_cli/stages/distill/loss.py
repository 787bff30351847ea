"""Loss of distillation: the divergence from the teacher at each token of a response."""

from __future__ import annotations

from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.losses.correction import importance_weights
from rlhf_cli.losses.distillation import Divergence, sampled_reverse_kl_loss
from rlhf_cli.losses.likelihood import nll_loss
from rlhf_cli.losses.reduction import LossOutput, LossTerm, Metrics, mean_metric
from rlhf_cli.models.policy import Policy
from rlhf_cli.stages.distill.config import DistillConfig
from rlhf_cli.stages.distill.teacher import TeacherModel
from rlhf_cli.stages.rollouts.statistics import mismatch_metrics
from rlhf_cli.train.row_loss import row_sums

RESPONSE = "response"
"""Column of rows that the student wrote: the index of the response among this rank's."""

SAMPLED = "sampled"
"""Token column of such rows, True for the tokens that the student sampled."""

TEACHER_LOGPROBS = "teacher_logprobs"
"""Token column of such rows: log-probs under a teacher that is a server, nats."""

SAMPLER_LOGPROBS = "sampler_logprobs"
"""Token column of such rows: log-probs of the server that generated them, nats."""


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
        if SAMPLED in rows.token_columns:
            return self._on_responses(rows, self.teacher)
        return self._on_completions(rows, self.teacher)

    def _on_responses(self, rows: TokenBatch, teacher: TeacherModel) -> LossOutput:
        """Divergence at tokens that the student sampled."""
        by_server = SAMPLER_LOGPROBS in rows.token_columns
        at = self.cfg.sampling.temperature if by_server else None
        found = teacher.compare(
            self.student, rows, self.divergence, ("entropy",), logprobs_at=at, sampled=True
        )
        metrics: Metrics = {
            "divergence/student": mean_metric(found.tokens),
            "policy/entropy": mean_metric(found.extra["entropy"]),
        }
        if found.logp is not None:
            sampler = rows.token_columns[SAMPLER_LOGPROBS]
            metrics |= mismatch_metrics(found.logp.detach(), sampler)
        self._note(rows, found.tokens)
        return LossOutput({"divergence": LossTerm(found.total, "tokens")}, metrics)

    def _on_completions(self, rows: TokenBatch, teacher: TeacherModel) -> LossOutput:
        """Divergence at the tokens of the rows' completions, and their likelihood."""
        at = 1.0 if self.cfg.sft_coef else None
        found = teacher.compare(self.student, rows, self.divergence, ("entropy",), logprobs_at=at)
        terms = {"divergence": LossTerm(found.total, "tokens")}
        metrics: Metrics = {
            "divergence/data": mean_metric(found.tokens),
            "policy/entropy": mean_metric(found.extra["entropy"]),
        }
        if found.logp is not None:
            nll = nll_loss(found.logp)
            terms["sft"] = LossTerm(nll.sum(), "tokens", self.cfg.sft_coef)
            metrics["loss/sft"] = mean_metric(nll)
        return LossOutput(terms, metrics)

    def _sampled(self, rows: TokenBatch) -> LossOutput:
        """Loss at the sampled tokens alone, by the log-probs of a server."""
        out = self.student(rows, want=("logp", "entropy"), sampled=True)
        ratios = sampled_reverse_kl_loss(out.logp, rows.token_columns[TEACHER_LOGPROBS])
        weights, metrics = self._corrections(out.logp.detach(), rows)
        assert out.entropy is not None
        metrics["divergence/student"] = mean_metric(ratios)
        metrics["policy/entropy"] = mean_metric(out.entropy)
        self._note(rows, ratios)
        losses = ratios if weights is None else weights * ratios
        return LossOutput({"divergence": LossTerm(losses.sum(), "tokens")}, metrics)

    def _corrections(self, logp: Tensor, rows: TokenBatch) -> tuple[Tensor | None, Metrics]:
        """Importance weights [S] of tokens that a server sampled, and metrics of its mismatch."""
        sampler = rows.token_columns.get(SAMPLER_LOGPROBS)
        if sampler is None:
            return None, {}
        rollout, metrics = self.cfg.rollout, mismatch_metrics(logp, sampler)
        if rollout.corrects == "none":
            return None, metrics
        weights = importance_weights(
            logp[None],
            sampler[None],
            rows.token_columns[SAMPLED][None],
            per="token",
            cap=rollout.correction_cap,
            drop=rollout.correction_mask,
        )[0]
        return weights, {**metrics, "correction/weight": mean_metric(weights)}

    def _note(self, rows: TokenBatch, tokens: Tensor) -> None:
        """Keep the divergence of each response for the log."""
        if rows.is_filler or RESPONSE not in rows.columns:
            return
        sums = row_sums(tokens.detach(), rows).tolist()
        numbers = map(int, rows.columns[RESPONSE].tolist())
        self.of_response.update(zip(numbers, sums, strict=True))

"""Loss of PPO: policy loss, value loss and KL of a micro-batch, or likelihood of `ptx_data`."""

from __future__ import annotations

from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.kernels.lm_head import TokenLogprobs
from rlhf_cli.losses.kl import approximate_kl, kl_estimate
from rlhf_cli.losses.policy import (
    RatioClip,
    cispo_loss,
    clipped_surrogate,
    importance_log_ratio,
)
from rlhf_cli.losses.reduction import LossOutput, LossTerm, Metrics, mean_metric
from rlhf_cli.losses.value import value_loss
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.value_model import SharedValueModel
from rlhf_cli.stages.ppo.columns import POLICY_UNIT, POLICY_WEIGHT, PTX_MASK
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.ppo.correction import CORRECTION
from rlhf_cli.stages.rollouts.minibatches import RESPONSE_MASK, VALUE_MASK
from rlhf_cli.stages.rollouts.statistics import mismatch_metrics


class PPOLoss:
    """Loss of a micro-batch: policy loss, value loss and KL, or likelihood of `ptx_data`.

    Attributes:
        kl_coef: KL penalty coefficient of the rollout, for `kl_in=loss`.
        entropy_coef: coefficient of the entropy bonus of the rollout.
        value_warmup: only the value model is trained.
        first_update: the policy is still the one that sampled the responses.
        approx_kl: sum and count of the approximate KL of the current update, over the tokens of
            this rank.
    """

    def __init__(self, cfg: PPOConfig, policy: Policy) -> None:
        self.cfg, self.policy = cfg, policy
        self.kl_coef, self.value_warmup, self.first_update = cfg.kl_coef, False, True
        self.entropy_coef = cfg.entropy_coef
        self.clip = RatioClip(cfg.clip_range, cfg.clip_high, cfg.dual_clip)
        self.approx_kl: tuple[Tensor | float, int] = (0.0, 0)

    def start_rollout(self, kl_coef: float, entropy_coef: float, *, value_warmup: bool) -> None:
        """Set the coefficients and value warmup for the updates of a rollout."""
        self.kl_coef, self.entropy_coef = kl_coef, entropy_coef
        self.value_warmup, self.first_update = value_warmup, True
        if isinstance(self.policy.value_model, SharedValueModel):
            self.policy.value_model.detach_hidden = value_warmup

    def __call__(self, rows: TokenBatch) -> LossOutput:
        """Compute the loss of a micro-batch."""
        return self._ptx_loss(rows) if PTX_MASK in rows.token_columns else self._ppo_loss(rows)

    def _ptx_loss(self, rows: TokenBatch) -> LossOutput:
        nll = -self.policy(rows).logp
        ptx = LossTerm(nll.sum(), PTX_MASK, self.cfg.ptx_coef)
        return LossOutput({"ptx": ptx}, {"loss/ptx": mean_metric(nll)})

    def _ppo_loss(self, rows: TokenBatch) -> LossOutput:
        cfg = self.cfg
        want = {"logp", "entropy"} | ({"value"} if cfg.has_value_model else set())
        out = self.policy(rows, want=want, temperature=cfg.sampling.temperature, sampled=True)
        terms, metrics = self._policy_terms(out, rows)
        if out.value is not None:
            value, found = self._value_term(out.value, rows)
            terms["value"] = value
            metrics |= found
        return LossOutput(terms, metrics)

    def _policy_terms(
        self, out: TokenLogprobs, rows: TokenBatch
    ) -> tuple[dict[str, LossTerm], Metrics]:
        cfg, columns, kept = self.cfg, rows.token_columns, _index(rows, RESPONSE_MASK)
        logprobs, old = out.logp[kept], columns["old_logprobs"][kept]
        row = rows.row_of_scored[kept]
        log_ratio = importance_log_ratio(logprobs - old, row, len(rows.lengths), cfg.ratio)
        losses = self._policy_losses(logprobs, log_ratio, columns["advantages"][kept])
        if CORRECTION in columns:
            losses = losses * columns[CORRECTION][kept]
        terms = {"policy": _policy_term(losses, rows)}
        ratio, approx_kl = log_ratio.detach().exp(), approximate_kl(logprobs, old).detach()
        if not rows.is_filler:
            total, count = self.approx_kl
            self.approx_kl = (total + approx_kl.sum(), count + len(approx_kl))
        metrics: Metrics = {
            "loss/policy": (terms["policy"].total.detach(), float(rows.count[POLICY_UNIT])),
            "policy/approx_kl": mean_metric(approx_kl),
            "policy/ratio": mean_metric(ratio),
            "policy/clip_fraction": mean_metric(self._clipped(ratio).float()),
        }
        if self.first_update and cfg.reuses_logprobs:
            metrics |= mismatch_metrics(logprobs, old)
        if out.entropy is not None:
            metrics["policy/entropy"] = mean_metric(out.entropy[kept])
            if self.entropy_coef:
                terms["entropy"] = _policy_term(-out.entropy[kept], rows, self.entropy_coef)
        if cfg.kl_in == "loss":
            kl = kl_estimate(logprobs, columns["ref_logprobs"][kept], cfg.kl_estimator)
            terms["kl"] = _policy_term(kl, rows, self.kl_coef)
        # not a weight of 0: the optimizer's weight decay acts on what has a gradient, even of zeros
        return {} if self.value_warmup else terms, metrics

    def _policy_losses(self, logprobs: Tensor, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """[S'], loss of each response token, not reduced."""
        if self.cfg.policy_loss == "cispo":
            return cispo_loss(logprobs, log_ratio, advantages, self.clip)
        return clipped_surrogate(log_ratio, advantages, self.clip)

    def _clipped(self, ratio: Tensor) -> Tensor:
        """[S'] bool: where the ratio is outside its limits."""
        if self.cfg.policy_loss == "cispo":
            return ratio > 1 + self.clip.high
        return self.clip.exceeded(ratio)

    def _value_term(self, values: Tensor, rows: TokenBatch) -> tuple[LossTerm, Metrics]:
        cfg, columns, kept = self.cfg, rows.token_columns, _index(rows, VALUE_MASK)
        values, old = values[kept], columns["old_values"][kept]
        losses = value_loss(values, old, columns["returns"][kept], cfg.value_clip_range)
        clipped = (values - old).abs() > cfg.value_clip_range
        metrics: Metrics = {
            "loss/value": mean_metric(losses),
            "value/clip_fraction": mean_metric(clipped.float()),
        }
        return LossTerm(losses.sum(), VALUE_MASK, cfg.vf_coef), metrics


def _policy_term(losses: Tensor, rows: TokenBatch, weight: float = 1.0) -> LossTerm:
    """Reduce losses of response tokens [S'] as `loss_aggregation` says; the only place that does.

    Each token's loss is multiplied by `POLICY_WEIGHT`, and their sum divided by the step's count of
    `POLICY_UNIT`, so that micro-batches and ranks do not matter.
    """
    weights = rows.token_columns[POLICY_WEIGHT][_index(rows, RESPONSE_MASK)]
    return LossTerm((losses * weights).sum(), POLICY_UNIT, weight)


def _index(rows: TokenBatch, mask: str) -> Tensor | slice:
    """Index of the scored tokens where a mask is True.

    All of them, unless `compat=trl` scores a position after the end. Then no mask is read, because
    that would make the host wait for the device.
    """
    whole = rows.count[mask] == rows.count["tokens"]
    return slice(None) if whole else rows.token_columns[mask]

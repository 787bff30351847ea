"""The loss of an update: tokens of a rollout, with what was learned of each."""

from __future__ import annotations

from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.kernels.head import TokenLogprobs
from rlhf_cli.losses.kl import kl_estimate
from rlhf_cli.losses.ppo import approximate_kl, policy_loss, value_loss
from rlhf_cli.losses.reduce import LossOutput, Metrics, Term
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.value_model import SharedValueModel
from rlhf_cli.stages.ppo.config import PPOConfig

SAMPLED = "sampled"
"""Token column: the policy wrote this token."""

VALUED = "valued"
"""Token column: a value counts here."""

TEXT = "text"
"""Token column: a token of `ptx_data`."""


class PPOLoss:
    """Clipped surrogate, value loss and KL of the rows of a rollout; likelihood of other text.

    Attributes:
        kl_coef: of the rollout, where the price of KL is paid in the loss.
        warming: the value model alone is trained.
        fresh: no update of the rollout was made yet: the policy is still the one that wrote.
        moved: sum and count of the approximate KL of the update that is being made, over the
            tokens of this rank.
    """

    def __init__(self, cfg: PPOConfig, policy: Policy) -> None:
        self.cfg, self.policy = cfg, policy
        self.kl_coef, self.warming, self.fresh = cfg.kl_coef, False, True
        self.moved: tuple[Tensor | float, int] = (0.0, 0)

    def begin(self, kl_coef: float, *, warming: bool) -> None:
        """Take in what holds for the updates of a rollout."""
        self.kl_coef, self.warming, self.fresh = kl_coef, warming, True
        if isinstance(self.policy.value_model, SharedValueModel):
            self.policy.value_model.detach_hidden = warming

    def __call__(self, rows: TokenBatch) -> LossOutput:
        """The loss of these rows."""
        return self._of_text(rows) if TEXT in rows.token_columns else self._of_rollout(rows)

    def _of_text(self, rows: TokenBatch) -> LossOutput:
        nll = -self.policy(rows).logp
        ptx = Term(nll.sum(), TEXT, self.cfg.ptx_coef)
        return LossOutput({"ptx": ptx}, {"loss/ptx": _mean(nll)})

    def _of_rollout(self, rows: TokenBatch) -> LossOutput:
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
    ) -> tuple[dict[str, Term], Metrics]:
        cfg, known, kept = self.cfg, rows.token_columns, _kept(rows, SAMPLED)
        logp, old = out.logp[kept], known["old_logp"][kept]
        losses = policy_loss(logp, old, known["advantage"][kept], cfg.clip_range)
        terms = {"policy": Term(losses.sum(), SAMPLED)}
        ratio, moved = (logp - old).exp(), approximate_kl(logp, old).detach()
        self.moved = (self.moved[0] + moved.sum(), self.moved[1] + len(moved))
        metrics: Metrics = {
            "loss/policy": _mean(losses),
            "policy/approx_kl": _mean(moved),
            "policy/ratio": _mean(ratio),
            "policy/clip_fraction": _mean(((ratio - 1).abs() > cfg.clip_range).float()),
        }
        if self.fresh and cfg.reuses_logprobs:
            metrics["rollout/mismatch"] = _mean((logp - old).abs())
            metrics["rollout/mismatch_kl"] = _mean(moved)
        if out.entropy is not None:
            metrics["policy/entropy"] = _mean(out.entropy[kept])
        if cfg.kl_in == "loss":
            kl = kl_estimate(logp, known["ref_logp"][kept], cfg.kl_estimator)
            terms["kl"] = Term(kl.sum(), SAMPLED, self.kl_coef)
        # not a weight of 0: the optimizer would shrink what has a gradient, even one of zeros
        return {} if self.warming else terms, metrics

    def _value_term(self, value: Tensor, rows: TokenBatch) -> tuple[Term, Metrics]:
        cfg, known, kept = self.cfg, rows.token_columns, _kept(rows, VALUED)
        value, old = value[kept], known["old_value"][kept]
        losses = value_loss(value, old, known["target"][kept], cfg.value_clip_range)
        far = (value - old).abs() > cfg.value_clip_range
        metrics: Metrics = {"loss/value": _mean(losses), "value/clip_fraction": _mean(far.float())}
        return Term(losses.sum(), VALUED, cfg.vf_coef), metrics


def _kept(rows: TokenBatch, mask: str) -> Tensor | slice:
    """The scored tokens that a mask keeps, as an index.

    All of them unless `compat=trl` scores a position behind the end, and then no mask is read: it
    would make the host wait for the device.
    """
    whole = rows.count[mask] == rows.count["tokens"]
    return slice(None) if whole else rows.token_columns[mask]


def _mean(values: Tensor) -> tuple[Tensor, float]:
    return values.detach().sum(), float(len(values))

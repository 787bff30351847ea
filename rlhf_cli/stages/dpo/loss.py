"""Losses of dpo: preference pairs, KTO's labelled rows, and TR-DPO's moving reference."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.distributed.shards import ShardLayout
from rlhf_cli.losses.config import PREFERENCE_LOSSES
from rlhf_cli.losses.dpo import PAIR_LOSSES, LossHyperparams, Pairs, get_divergence, wpo_weight
from rlhf_cli.losses.reduction import LossOutput, LossTerm, Metrics
from rlhf_cli.losses.unpaired import kto_loss, reference_point
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.sharding import layout_of, local_tensor, reshard
from rlhf_cli.stages.dpo.config import NLL, DPOConfig
from rlhf_cli.stages.reference import ReferenceModel, RowReference
from rlhf_cli.stages.unpaired import (
    label_metrics,
    labelled_row_values,
    select_by_label,
)
from rlhf_cli.train.row_loss import (
    RowLoss,
    RowValues,
    row_logprobs,
    row_sums,
    row_tokens,
    split_pairs,
)
from rlhf_cli.train.step_source import StageState


def preference_loss(cfg: DPOConfig, policy: Policy, reference: RowReference) -> RowLoss:
    """Weighted sum of the configured pair losses."""
    want = {"logp", "entropy"} | ({"sum_sq"} if cfg.wpo else set())

    def values(rows: TokenBatch) -> RowValues:
        out = policy(rows, want=want)
        tokens = row_tokens(rows)
        found = {
            "logp": row_logprobs(out, rows, cfg.ld_alpha),
            "reference": reference(rows),
            "tokens": tokens,
        }
        if cfg.ld_alpha < 1:
            found["plain_logp"] = row_sums(out.logp, rows)
        if out.entropy is not None:
            found["entropy"] = row_sums(out.entropy.detach(), rows)
        if out.sum_sq is not None:
            likely = out.logp.detach() - out.sum_sq.log()
            found["likely"] = row_sums(likely, rows) / tokens
        return found

    def loss(values: RowValues) -> LossOutput:
        return _pair_losses(cfg, values)

    couples = any(PREFERENCE_LOSSES[name].needs_full_batch for name in cfg.losses)
    return RowLoss(values, loss, couples_rows=couples)


def _pair_losses(cfg: DPOConfig, values: RowValues) -> LossOutput:
    def sides(name: str) -> tuple[Tensor, Tensor]:
        return split_pairs(values[name])

    pairs = Pairs(
        *sides("logp"),
        *sides("reference"),
        *sides("tokens"),
        get_divergence(cfg.f_divergence, cfg.f_alpha),
    )
    hyperparams = LossHyperparams(cfg.beta, cfg.label_smoothing, cfg.discopop_tau, cfg.simpo_gamma)
    weight = wpo_weight(*sides("likely")) if cfg.wpo else torch.ones_like(pairs.chosen)
    nll = -split_pairs(values.get("plain_logp", values["logp"]))[0].sum()
    terms = {}
    for name, share in cfg.losses.items():
        if name != "sft":
            losses = PAIR_LOSSES[name](pairs, hyperparams) * weight
            terms[name] = LossTerm(losses.sum(), "examples", share)
        if name in NLL:
            of_nll = share if name == "sft" else share * cfg.nll_weight
            terms[f"{name} nll"] = LossTerm(nll, "chosen_tokens", of_nll)
    return LossOutput(terms, _metrics(cfg, pairs, values))


def _metrics(cfg: DPOConfig, pairs: Pairs, values: RowValues) -> Metrics:
    count = len(pairs.chosen)
    chosen, rejected = pairs.chosen.detach(), pairs.rejected.detach()
    found = {"logps/chosen": chosen, "logps/rejected": rejected}
    if cfg.needs_reference:
        w, r = cfg.beta * (chosen - pairs.ref_chosen), cfg.beta * (rejected - pairs.ref_rejected)
    else:  # these losses compare means over tokens, except cpo
        w, r = cfg.beta * chosen, cfg.beta * rejected
        if "cpo" not in cfg.losses:
            w, r = w / pairs.chosen_tokens, r / pairs.rejected_tokens
    found |= {
        "rewards/chosen": w,
        "rewards/rejected": r,
        "rewards/margins": w - r,
        "rewards/accuracies": (w > r).float(),
    }
    means: Metrics = {name: (value.sum(), float(count)) for name, value in found.items()}
    if "entropy" in values:
        tokens = values["tokens"].detach().sum()
        means["entropy"] = (values["entropy"].detach().sum(), tokens)
    return means


def kto_row_loss(cfg: DPOConfig, policy: Policy, reference: RowReference) -> RowLoss:
    """KTO over the first row of each example; the second rows give the reference point z."""

    def values(rows: TokenBatch) -> RowValues:
        return labelled_row_values(policy, reference, rows)

    def loss(values: RowValues) -> LossOutput:
        s, mismatched = split_pairs(values["logp"] - values["reference"])
        label, _ = split_pairs(values["label"])
        logp, _ = split_pairs(values["logp"])
        z = reference_point(mismatched)
        losses = kto_loss(s, label, z, beta=cfg.beta)
        losses = losses * select_by_label(label, cfg.desirable_weight, cfg.undesirable_weight)
        metrics = label_metrics(cfg.beta * s, label, logp) | {"kl": (z, 1.0)}
        return LossOutput({"kto": LossTerm(losses.sum(), "examples")}, metrics)

    return RowLoss(values, loss, couples_rows=True)


class MovingReference(StageState):
    """TR-DPO (arXiv:2404.09656): every so many steps the reference moves towards the policy.

    Args:
        policy: the trained model.
        reference: its frozen copy.
        every: optimizer steps between two updates.
        share: weight of the policy in the new reference, 0 to 1 (eq. 6).
    """

    def __init__(self, policy: Policy, reference: ReferenceModel, every: int, share: float) -> None:
        self.every, self.share, self.held = every, share, reference.policy
        self.pairs = reference.params_of(policy)

    def after_step(self, step: int) -> None:
        """Update the reference if it is due."""
        if step % self.every == 0:
            reshard(self.held)
            with torch.no_grad():
                for reference, trained in self.pairs.values():
                    own = local_tensor(reference)
                    own.lerp_(local_tensor(trained).to(own), self.share)

    def tensors(self) -> dict[str, Tensor]:
        """The reference's weights, of sharded ones this rank's rows."""
        return {name: local_tensor(own.data) for name, (own, _) in self.pairs.items()}

    def layouts(self) -> dict[str, ShardLayout]:
        """Name -> rows of the reference's weights that this rank holds."""
        return {name: layout_of(own) for name, (own, _) in self.pairs.items()}


def reference_state(cfg: DPOConfig, policy: Policy, reference: RowReference) -> StageState:
    """What the run keeps from step to step: a reference that moves, or nothing."""
    if reference.copy is None or not cfg.sync_steps:
        return StageState()
    return MovingReference(policy, reference.copy, cfg.sync_steps, cfg.sync_alpha)

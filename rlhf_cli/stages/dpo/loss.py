"""The loss of preference pairs: numbers of each response, and losses of the pairs they make."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.losses.config import PREFERENCE_LOSSES
from rlhf_cli.losses.dpo import PAIR_LOSSES, LossHyperparams, Pairs, get_divergence, wpo_weight
from rlhf_cli.losses.reduction import LossOutput, LossTerm, Metrics
from rlhf_cli.models.policy import Policy
from rlhf_cli.stages.dpo.config import NLL, DPOConfig
from rlhf_cli.stages.reference import Reference
from rlhf_cli.train.row_loss import RowLoss, RowValues
from rlhf_cli.train.sequence import row_logprobs, row_sums, row_tokens, split_pairs


def preference_loss(cfg: DPOConfig, policy: Policy, reference: Reference) -> RowLoss:
    """The weighted sum of the losses that the configuration names, over pairs."""
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

    def of(values: RowValues) -> LossOutput:
        return _of(cfg, values)

    couples = any(PREFERENCE_LOSSES[name].needs_full_batch for name in cfg.losses)
    return RowLoss(values, of, couples=couples)


def _of(cfg: DPOConfig, values: RowValues) -> LossOutput:
    def sides(name: str) -> tuple[Tensor, Tensor]:
        return split_pairs(values[name])

    pairs = Pairs(
        *sides("logp"),
        *sides("reference"),
        *sides("tokens"),
        get_divergence(cfg.f_divergence, cfg.f_alpha),
    )
    knobs = LossHyperparams(cfg.beta, cfg.label_smoothing, cfg.discopop_tau, cfg.simpo_gamma)
    weight = wpo_weight(*sides("likely")) if cfg.wpo else torch.ones_like(pairs.chosen)
    nll = -split_pairs(values.get("plain_logp", values["logp"]))[0].sum()
    terms = {}
    for name, share in cfg.losses.items():
        if name != "sft":
            losses = PAIR_LOSSES[name](pairs, knobs) * weight
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
    else:  # what these losses compare: means over tokens, save for cpo
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

"""Losses of preference pairs: the DPO family and its reference-free relatives.

A new loss is a function here and in `PAIR_LOSSES`, its traits in `losses/config.py`, and its name
in `LossName` of `stages/dpo/config.py`. The DPO paper's own loss is `sigmoid`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

MAX_EXPONENT = 80.0
"""Largest exponent passed to `exp`: e^80 is still finite in fp32."""

Divergence = Callable[[Tensor], Tensor]
"""f'(p / p_ref) [B], up to a constant that cancels within a pair, from the log-ratio
s = log p - log p_ref [B], nats (Wang et al. 2023, arXiv:2309.16240)."""


def reverse_kl(s: Tensor) -> Tensor:
    """Reverse KL, DPO's own divergence: s."""
    return s


def forward_kl(s: Tensor) -> Tensor:
    """Forward KL: 1 - e^-s."""
    return 1 - (-s).clamp(max=MAX_EXPONENT).exp()


def jensen_shannon(s: Tensor) -> Tensor:
    """Jensen-Shannon divergence: log 2 + log sigmoid(s)."""
    return math.log(2) + logsigmoid(s)


def alpha_divergence(s: Tensor, *, order: float) -> Tensor:
    """α-divergence: (e^((a-1) s) - 1) / (a - 1) for order a, not 1.

    Order 0 is forward KL; towards 1 it becomes reverse KL.
    """
    return (((order - 1) * s).clamp(max=MAX_EXPONENT).exp() - 1) / (order - 1)


def get_divergence(name: str, alpha: float) -> Divergence:
    """f-divergence `reverse_kl`, `forward_kl`, `js`, or `alpha` of order `alpha`."""
    if name == "alpha":
        return partial(alpha_divergence, order=alpha)
    return {"reverse_kl": reverse_kl, "forward_kl": forward_kl, "js": jensen_shannon}[name]


@dataclass(frozen=True)
class Pairs:
    """Log-probs of B pairs of a chosen (w) and a rejected (l) response.

    Attributes:
        chosen: [B], nats, log p(response | prompt) under the policy, summed over response tokens.
        rejected: [B], nats, the same for the rejected response.
        ref_chosen: [B], nats, under the reference; zeros if there is none.
        ref_rejected: [B], nats.
        chosen_tokens: [B], number of response tokens in the sum.
        rejected_tokens: [B].
        f_divergence: maps the log-ratio log p - log p_ref to its f-divergence term.
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    f_divergence: Divergence = reverse_kl

    @cached_property
    def chosen_logratio(self) -> Tensor:
        """[B], nats: log-ratio of the chosen response, or its f-divergence term."""
        return self.f_divergence(self.chosen - self.ref_chosen)

    @cached_property
    def rejected_logratio(self) -> Tensor:
        """[B], nats: the same for the rejected response."""
        return self.f_divergence(self.rejected - self.ref_rejected)

    @property
    def margin(self) -> Tensor:
        """[B], nats: difference of the log-ratios, chosen minus rejected."""
        return self.chosen_logratio - self.rejected_logratio

    @property
    def mean_margin(self) -> Tensor:
        """[B], nats per token: `margin` of per-token means."""
        chosen = self.chosen_logratio / self.chosen_tokens
        return chosen - self.rejected_logratio / self.rejected_tokens


@dataclass(frozen=True)
class LossHyperparams:
    """Hyperparameters of the preference losses.

    Attributes:
        beta: > 0, 1/nats; larger keeps the policy closer to the reference.
        label_smoothing: 0 to 0.5, assumed fraction of pairs with swapped labels.
        discopop_tau: > 0, temperature of DiscoPOP's gate.
        simpo_gamma: target margin of SimPO, nats.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    discopop_tau: float = 0.05
    simpo_gamma: float = 0.5


PairLoss = Callable[[Pairs, LossHyperparams], Tensor]
"""A preference loss: [B], nats, one value per pair, not reduced."""


def smoothed_logistic(logits: Tensor, smoothing: float) -> Tensor:
    """Logistic loss with label smoothing e: -(1-e) log σ(x) - e log σ(-x), [B]."""
    return -(1 - smoothing) * logsigmoid(logits) - smoothing * logsigmoid(-logits)


def sigmoid(pairs: Pairs, hp: LossHyperparams) -> Tensor:
    """DPO (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

    With label smoothing, cDPO (Mitchell 2023). ln 2 wherever policy and reference agree.
    """
    return smoothed_logistic(hp.beta * pairs.margin, hp.label_smoothing)


def hinge(pairs: Pairs, hp: LossHyperparams) -> Tensor:
    """SLiC hinge loss on log-ratios (Zhao et al. 2023, arXiv:2305.10425; Liu et al. 2023)."""
    return relu(1 - hp.beta * pairs.margin)


def ipo(pairs: Pairs, hp: LossHyperparams) -> Tensor:
    """IPO (Azar et al. 2023, arXiv:2310.12036, eq. 17), on per-token means.

    1/(4β²) wherever policy and reference agree.
    """
    return (pairs.mean_margin - 1 / (2 * hp.beta)) ** 2


def robust(pairs: Pairs, hp: LossHyperparams) -> Tensor:
    """Robust DPO (Chowdhury et al. 2024, arXiv:2403.00409, eq. 9): unbiased under flipped labels.

    `label_smoothing` is the fraction of flipped labels, below 0.5.
    """
    flip, logits = hp.label_smoothing, hp.beta * pairs.margin
    return (-(1 - flip) * logsigmoid(logits) + flip * logsigmoid(-logits)) / (1 - 2 * flip)


def exo_pair(pairs: Pairs, hp: LossHyperparams) -> Tensor:
    """EXO on pairs (Ji et al. 2024, arXiv:2402.00856, eq. 16); needs `label_smoothing` > 0."""
    logits, e = hp.beta * pairs.margin, pairs.margin.new_tensor(hp.label_smoothing)
    right, wrong = logsigmoid(logits), logsigmoid(-logits)
    return right.exp() * (right - torch.log1p(-e)) + wrong.exp() * (wrong - e.log())


def nca_pair(pairs: Pairs, hp: LossHyperparams) -> Tensor:
    """NCA on pairs (Chen et al. 2024, arXiv:2402.05369)."""
    w, r = hp.beta * pairs.chosen_logratio, hp.beta * pairs.rejected_logratio
    return -logsigmoid(w) - 0.5 * (logsigmoid(-w) + logsigmoid(-r))


def bco_pair(pairs: Pairs, hp: LossHyperparams) -> Tensor:
    """BCO on pairs with reward shift δ = 0 (Jung et al. 2024, arXiv:2404.04656)."""
    w, r = hp.beta * pairs.chosen_logratio, hp.beta * pairs.rejected_logratio
    return -logsigmoid(w) - logsigmoid(-r)


def sppo_hard(pairs: Pairs, hp: LossHyperparams) -> Tensor:
    """SPPO with hard labels (Wu et al. 2024, arXiv:2405.00675)."""
    target = 1 / (2 * hp.beta)
    return (pairs.chosen_logratio - target) ** 2 + (pairs.rejected_logratio + target) ** 2


def aot(pairs: Pairs, hp: LossHyperparams) -> Tensor:
    """AOT (Melnyk et al. 2024, arXiv:2406.05882): sorted margins against sorted reference margins.

    [B] by rank, not by pair, so the loss needs all pairs of the optimizer step.
    """
    margins = (pairs.chosen - pairs.rejected).sort().values
    ref_margins = (pairs.ref_chosen - pairs.ref_rejected).sort().values
    return smoothed_logistic(hp.beta * (margins - ref_margins), hp.label_smoothing)


def aot_unpaired(pairs: Pairs, hp: LossHyperparams) -> Tensor:
    """Unpaired AOT (arXiv:2406.05882): sorted chosen against sorted rejected log-ratios."""
    margin = pairs.chosen_logratio.sort().values - pairs.rejected_logratio.sort().values
    return smoothed_logistic(hp.beta * margin, hp.label_smoothing)


def apo_zero(pairs: Pairs, hp: LossHyperparams) -> Tensor:
    """APO-zero (D'Oosterlinck et al. 2024, arXiv:2408.06266): raises chosen, lowers rejected."""
    w, r = hp.beta * pairs.chosen_logratio, hp.beta * pairs.rejected_logratio
    return 1 - w.sigmoid() + r.sigmoid()


def apo_down(pairs: Pairs, hp: LossHyperparams) -> Tensor:
    """APO-down (arXiv:2408.06266): lowers both responses, the rejected one more.

    For a policy that is better than its data.
    """
    return (hp.beta * pairs.chosen_logratio).sigmoid() + 1 - (hp.beta * pairs.margin).sigmoid()


def discopop(pairs: Pairs, hp: LossHyperparams) -> Tensor:
    """DiscoPOP (Lu et al. 2024, arXiv:2406.08414): gated logistic and exponential loss."""
    logits = hp.beta * pairs.margin
    gate = (logits / hp.discopop_tau).sigmoid()
    exponential = (-logits).clamp(max=MAX_EXPONENT).exp()
    return (1 - gate) * -logsigmoid(logits) + gate * exponential


def sigmoid_norm(pairs: Pairs, hp: LossHyperparams) -> Tensor:
    """Length-normalized DPO (Meng et al. 2024, arXiv:2405.14734, table 3 onwards)."""
    return -logsigmoid(hp.beta * pairs.mean_margin)


def simpo(pairs: Pairs, hp: LossHyperparams) -> Tensor:
    """SimPO (Meng et al. 2024, arXiv:2405.14734, eq. 6); the paper uses beta 2 to 10."""
    margin = pairs.chosen / pairs.chosen_tokens - pairs.rejected / pairs.rejected_tokens
    return -logsigmoid(hp.beta * margin - hp.simpo_gamma)


def cpo(pairs: Pairs, hp: LossHyperparams) -> Tensor:
    """CPO's preference term (Xu et al. 2024, arXiv:2401.08417, eq. 3).

    Its NLL term is added apart.
    """
    return -logsigmoid(hp.beta * (pairs.chosen - pairs.rejected))


def orpo(pairs: Pairs, hp: LossHyperparams) -> Tensor:
    """ORPO's odds-ratio term (Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7).

    `beta` is the paper's λ. Odds are of the per-token mean log-prob. The NLL term is added apart.
    """
    w = pairs.chosen / pairs.chosen_tokens
    r = pairs.rejected / pairs.rejected_tokens
    odds = (w - log1mexp(w)) - (r - log1mexp(r))
    return -hp.beta * logsigmoid(odds)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, accurate near 0 (Maechler 2012).

    x = 0, where it is undefined, is replaced by the largest number below 0.
    """
    x = x.clamp(max=-torch.finfo(x.dtype).tiny)
    near = x > -0.6931471805599453
    # `where` alone would give the branch not taken a gradient of 0 * inf: feed it a safe number
    close = torch.where(near, x, torch.full_like(x, -0.5))
    far = torch.where(near, torch.full_like(x, -1.0), x)
    return torch.where(near, (-torch.expm1(close)).log(), torch.log1p(-far.exp()))


PAIR_LOSSES: dict[str, PairLoss] = {
    loss.__name__: loss
    for loss in (
        sigmoid,
        hinge,
        ipo,
        robust,
        exo_pair,
        nca_pair,
        bco_pair,
        sppo_hard,
        aot,
        aot_unpaired,
        apo_zero,
        apo_down,
        discopop,
        sigmoid_norm,
        simpo,
        cpo,
        orpo,
    )
}
"""Preference loss by `loss_type`; `sft`, a mean over tokens, is computed by the DPO stage."""


def wpo_weight(chosen: Tensor, rejected: Tensor) -> Tensor:
    """WPO weight of each pair (Zhou et al. 2024, arXiv:2406.11827, eq. 4), without gradient.

    Args:
        chosen: [B], nats, mean over tokens of log p(token) - log sum_v p(v)^2.
        rejected: [B], nats, the same for the rejected response.

    Returns:
        [B], > 0; largest for pairs that the policy itself is likely to generate.
    """
    return (chosen + rejected).exp().detach()


def ld_weight(token: Tensor, shared: Tensor, alpha: float) -> Tensor:
    """LD-DPO weight of each response token (Liu et al. 2024, arXiv:2409.06411, eq. 9).

    Args:
        token: [S], index of each token in its response, from 0.
        shared: [S], length of the shorter response of the token's pair.
        alpha: 0 to 1, weight of tokens past that length; 1 is plain DPO.

    Returns:
        [S], fp32.
    """
    return torch.where(token < shared, 1.0, alpha)

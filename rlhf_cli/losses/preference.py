"""The DPO family: losses of preference pairs, and their relatives without a reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from rlhf_cli.losses.divergence import MOST_EXPONENT, Divergence, reverse_kl


@dataclass(frozen=True)
class Pairs:
    """B pairs of a chosen (w) and a rejected (l) response.

    Attributes:
        chosen: [B], nats, log p(response | prompt) under the policy, summed over its tokens.
        rejected: [B], the same of the rejected response.
        ref_chosen: [B], nats, under the reference; zeros where there is none.
        ref_rejected: [B].
        chosen_tokens: [B], how many tokens the sum is over.
        rejected_tokens: [B].
        divergence: takes the place of the log-ratio log p - log p_ref.
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    divergence: Divergence = reverse_kl

    @cached_property
    def s_chosen(self) -> Tensor:
        """[B], nats: the chosen response's log-ratio, or what the divergence makes of it."""
        return self.divergence(self.chosen - self.ref_chosen)

    @cached_property
    def s_rejected(self) -> Tensor:
        """[B], nats: the same of the rejected response."""
        return self.divergence(self.rejected - self.ref_rejected)

    @property
    def delta(self) -> Tensor:
        """[B], nats: by how much the policy moved towards the chosen response."""
        return self.s_chosen - self.s_rejected

    @property
    def mean_delta(self) -> Tensor:
        """[B], nats a token: the same of the means over each response's tokens."""
        return self.s_chosen / self.chosen_tokens - self.s_rejected / self.rejected_tokens


@dataclass(frozen=True)
class Knobs:
    """Numbers of the losses.

    Attributes:
        beta: > 0; the pull towards the reference, 1/nats.
        label_smoothing: 0 to 0.5: the share of pairs that may be the wrong way round.
        discopop_tau: > 0; temperature of DiscoPOP's gate.
        simpo_gamma: SimPO's margin, nats.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    discopop_tau: float = 0.05
    simpo_gamma: float = 0.5


PairLoss = Callable[[Pairs, Knobs], Tensor]
"""[B], nats, one for each pair, not reduced."""


def smoothed(logits: Tensor, smoothing: float) -> Tensor:
    """-(1-e) log s(x) - e log s(-x), [B]: cross-entropy with a share e of wrong labels."""
    return -(1 - smoothing) * logsigmoid(logits) - smoothing * logsigmoid(-logits)


def sigmoid(pairs: Pairs, knobs: Knobs) -> Tensor:
    """DPO (Rafailov et al. 2023, arXiv:2305.18290, eq. 7); smoothed: cDPO (Mitchell 2023).

    ln 2 wherever policy and reference agree.
    """
    return smoothed(knobs.beta * pairs.delta, knobs.label_smoothing)


def hinge(pairs: Pairs, knobs: Knobs) -> Tensor:
    """SLiC's hinge on the log-ratios (Zhao et al. 2023, arXiv:2305.10425; Liu et al. 2023)."""
    return relu(1 - knobs.beta * pairs.delta)


def ipo(pairs: Pairs, knobs: Knobs) -> Tensor:
    """IPO (Azar et al. 2023, arXiv:2310.12036, eq. 17), on means over tokens; starts at 1/4b^2."""
    return (pairs.mean_delta - 1 / (2 * knobs.beta)) ** 2


def robust(pairs: Pairs, knobs: Knobs) -> Tensor:
    """Robust DPO (Chowdhury et al. 2024, arXiv:2403.00409, eq. 9): unbiased under flipped labels.

    `label_smoothing` is their share, below 0.5.
    """
    flip, logits = knobs.label_smoothing, knobs.beta * pairs.delta
    return (-(1 - flip) * logsigmoid(logits) + flip * logsigmoid(-logits)) / (1 - 2 * flip)


def exo_pair(pairs: Pairs, knobs: Knobs) -> Tensor:
    """EXO on pairs (Ji et al. 2024, arXiv:2402.00856, eq. 16); `label_smoothing` above 0."""
    logits, e = knobs.beta * pairs.delta, pairs.delta.new_tensor(knobs.label_smoothing)
    right, wrong = logsigmoid(logits), logsigmoid(-logits)
    return right.exp() * (right - torch.log1p(-e)) + wrong.exp() * (wrong - e.log())


def nca_pair(pairs: Pairs, knobs: Knobs) -> Tensor:
    """NCA on pairs (Chen et al. 2024, arXiv:2402.05369)."""
    w, r = knobs.beta * pairs.s_chosen, knobs.beta * pairs.s_rejected
    return -logsigmoid(w) - 0.5 * (logsigmoid(-w) + logsigmoid(-r))


def bco_pair(pairs: Pairs, knobs: Knobs) -> Tensor:
    """BCO of a pair with its reward shift at 0 (Jung et al. 2024, arXiv:2404.04656)."""
    return -logsigmoid(knobs.beta * pairs.s_chosen) - logsigmoid(-knobs.beta * pairs.s_rejected)


def sppo_hard(pairs: Pairs, knobs: Knobs) -> Tensor:
    """SPPO with hard labels (Wu et al. 2024, arXiv:2405.00675)."""
    target = 1 / (2 * knobs.beta)
    return (pairs.s_chosen - target) ** 2 + (pairs.s_rejected + target) ** 2


def aot(pairs: Pairs, knobs: Knobs) -> Tensor:
    """AOT (Melnyk et al. 2024, arXiv:2406.05882): margins in order against the reference's.

    [B] by rank, not by pair: the pairs of a whole step depend on each other.
    """
    margins = (pairs.chosen - pairs.rejected).sort().values
    ref_margins = (pairs.ref_chosen - pairs.ref_rejected).sort().values
    return smoothed(knobs.beta * (margins - ref_margins), knobs.label_smoothing)


def aot_unpaired(pairs: Pairs, knobs: Knobs) -> Tensor:
    """AOT without pairs (arXiv:2406.05882): chosen log-ratios in order against rejected ones'."""
    apart = pairs.s_chosen.sort().values - pairs.s_rejected.sort().values
    return smoothed(knobs.beta * apart, knobs.label_smoothing)


def apo_zero(pairs: Pairs, knobs: Knobs) -> Tensor:
    """APO-zero (D'Oosterlinck et al. 2024, arXiv:2408.06266): chosen up, rejected down."""
    w, r = knobs.beta * pairs.s_chosen, knobs.beta * pairs.s_rejected
    return 1 - w.sigmoid() + r.sigmoid()


def apo_down(pairs: Pairs, knobs: Knobs) -> Tensor:
    """APO-down (arXiv:2408.06266): both down, the rejected more; for a policy above its data."""
    return (knobs.beta * pairs.s_chosen).sigmoid() + 1 - (knobs.beta * pairs.delta).sigmoid()


def discopop(pairs: Pairs, knobs: Knobs) -> Tensor:
    """DiscoPOP (Lu et al. 2024, arXiv:2406.08414): a gate between logistic and exponential."""
    logits = knobs.beta * pairs.delta
    gate = (logits / knobs.discopop_tau).sigmoid()
    exponential = (-logits).clamp(max=MOST_EXPONENT).exp()
    return (1 - gate) * -logsigmoid(logits) + gate * exponential


def sigmoid_norm(pairs: Pairs, knobs: Knobs) -> Tensor:
    """DPO on means over tokens (Meng et al. 2024, arXiv:2405.14734, table 3 onwards)."""
    return -logsigmoid(knobs.beta * pairs.mean_delta)


def simpo(pairs: Pairs, knobs: Knobs) -> Tensor:
    """SimPO (Meng et al. 2024, arXiv:2405.14734, eq. 6); its paper's beta is 2 to 10."""
    apart = pairs.chosen / pairs.chosen_tokens - pairs.rejected / pairs.rejected_tokens
    return -logsigmoid(knobs.beta * apart - knobs.simpo_gamma)


def cpo(pairs: Pairs, knobs: Knobs) -> Tensor:
    """CPO's preference part (Xu et al. 2024, arXiv:2401.08417, eq. 3); its NLL is a term beside."""
    return -logsigmoid(knobs.beta * (pairs.chosen - pairs.rejected))


def orpo(pairs: Pairs, knobs: Knobs) -> Tensor:
    """ORPO's odds ratio (Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7); its NLL is beside.

    `beta` is its lambda. The odds are those of the mean log-prob a token.
    """
    w = pairs.chosen / pairs.chosen_tokens
    r = pairs.rejected / pairs.rejected_tokens
    odds = (w - log1mexp(w)) - (r - log1mexp(r))
    return -knobs.beta * logsigmoid(odds)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, without loss of digits near 0 (Maechler 2012).

    At 0, where it has no value, that of the largest number below stands for it.
    """
    x = x.clamp(max=-torch.finfo(x.dtype).tiny)
    near = x > -0.6931471805599453
    # each branch is fed a harmless number where the other is taken: 0 * inf would be its gradient
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
"""By name; `sft`, a mean over tokens and not over pairs, is not among them."""


def wpo_weight(chosen: Tensor, rejected: Tensor) -> Tensor:
    """WPO's weight of a pair (Zhou et al. 2024, arXiv:2406.11827, eq. 4), without gradient.

    Args:
        chosen: [B], nats, mean over tokens of log p(token) - log sum_v p(v)^2.
        rejected: [B], the same of the rejected response.

    Returns:
        [B]: above 0; pairs that the policy would itself write count most.
    """
    return (chosen + rejected).exp().detach()


def ld_weight(token: Tensor, shared: Tensor, alpha: float) -> Tensor:
    """LD-DPO's weight of response tokens (Liu et al. 2024, arXiv:2409.06411, eq. 9).

    Args:
        token: [S], index of each token in its response, from 0.
        shared: [S], length of the shorter response of its pair.
        alpha: 0 to 1, for tokens past that length; 1 is plain DPO.

    Returns:
        [S], fp32.
    """
    return torch.where(token < shared, 1.0, alpha)

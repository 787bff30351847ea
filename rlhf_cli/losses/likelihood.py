"""Language-model losses: next-token likelihood and expert load balancing."""

from __future__ import annotations

from torch import Tensor


def nll_loss(logp: Tensor) -> Tensor:
    """Negative log-likelihood of each token (Bengio et al. 2003, JMLR 3, section 2).

    Args:
        logp: [S], nats, log p(token | tokens before it).

    Returns:
        [S], nats, not reduced. ln V for a uniform distribution over V tokens.
    """
    return -logp


def load_balancing_loss(chosen: Tensor, share: Tensor, tokens: Tensor) -> Tensor:
    """Auxiliary load-balancing loss of a mixture of experts.

    (Fedus et al. 2021, arXiv:2101.03961, eq. 4.)

    Args:
        chosen: [R, E], how often each expert was in the top k of a row's tokens; constant.
        share: [R, E], router probabilities summed over the same tokens, with gradient.
        tokens: [R], tokens of each row, times layers.

    Returns:
        Scalar, no unit: E · Σ_e (mean of chosen) · (mean of share) over all rows. k, the number of
        experts per token, if the load is even.
    """
    total = tokens.sum()
    experts = share.shape[1]
    return experts * (chosen.sum(0) / total * (share.sum(0) / total)).sum()

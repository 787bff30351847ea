"""Maximum likelihood."""

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
    """How unevenly tokens are spread over experts (Fedus et al. 2021, arXiv:2101.03961, eq. 4).

    Args:
        chosen: [R, E], how often each expert was among the top k of the tokens of a row; constant.
        share: [R, E], sums of the router's probabilities over the same tokens, with gradient.
        tokens: [R], of each row, counted once for each layer.

    Returns:
        Scalar, no unit: E · Σ_e (mean of chosen) · (mean of share) over all rows. k, the number of
        experts a token, where all are chosen alike.
    """
    total = tokens.sum()
    experts = share.shape[1]
    return experts * (chosen.sum(0) / total * (share.sum(0) / total)).sum()

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

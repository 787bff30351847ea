"""Draw tokens from logits. One uniform number a token, so a draw depends on its own row alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rlhf_cli.errors import NonFinite
from rlhf_cli.rollout.config import SamplingConfig

BLOCK = 256
"""Tokens in a block: the running sum goes over blocks, then over the tokens of one."""

DAMAGED = -1
"""In place of a token id, where logits are not finite: read with the tokens, in one transfer."""

NUCLEUS = 1024
"""How many of the likeliest tokens are sorted first to find a nucleus; more where needed."""


def noise(seed: int, prompt: int, sample: int) -> np.random.Generator:
    """Where the uniform numbers of one response come from; its own for every prompt and sample."""
    # numpy mixes the three into 128 bits; torch's CPU generator takes 32
    return np.random.default_rng((seed, prompt, sample))


def draw(logits: Tensor, uniform: Tensor, sampling: SamplingConfig) -> Tensor:
    """Draw one token a row.

    Args:
        logits: [R, V] in fp32; used up.
        uniform: [R] in fp64, in [0, 1); not used at temperature 0.
        sampling: temperature, then top_k, then top_p of what is left, then min_p.

    Returns:
        [R] token ids; `DAMAGED` where a row's largest logit is not finite.
    """
    largest, likeliest = logits.max(-1, keepdim=True)
    if sampling.temperature == 0:
        drawn = likeliest.squeeze(1)
    else:
        weights = logits.sub_(largest).div_(sampling.temperature).exp_()
        drawn = inverse_cdf(keep_likely(weights, sampling), uniform)
    return torch.where(largest.squeeze(1).isfinite(), drawn, DAMAGED)


def require_tokens(drawn: Sequence[int]) -> None:
    """Refuse draws from logits that are not finite.

    Raises:
        NonFinite: one of the ids is `DAMAGED`.
    """
    if DAMAGED in drawn:
        raise NonFinite("sampling: the model's logits are not finite; its weights are damaged")


def keep_likely(weights: Tensor, sampling: SamplingConfig) -> Tensor:
    """Set unlikely tokens to zero. Tokens as likely as the last one kept are kept too.

    Args:
        weights: [R, V], probabilities up to a factor; the largest of a row is 1. Used up.
        sampling: top_k, top_p, min_p.
    """
    if 0 < sampling.top_k < weights.shape[1]:
        least = weights.topk(sampling.top_k).values[:, -1:]
        weights.masked_fill_(weights < least, 0)
    if sampling.top_p < 1:
        weights.masked_fill_(weights < _least_of_nucleus(weights, sampling.top_p), 0)
    if sampling.min_p > 0:
        weights.masked_fill_(weights < sampling.min_p, 0)
    return weights


def _least_of_nucleus(weights: Tensor, top_p: float) -> Tensor:
    """[R, 1]: smallest weight in the fewest likeliest tokens that have the mass `top_p`."""
    wanted = top_p * weights.sum(-1, keepdim=True, dtype=torch.float64)
    size = min(NUCLEUS, weights.shape[1])
    while True:
        best = weights.topk(size).values
        mass = _running_sum(best)
        if size == weights.shape[1] or bool((mass[:, -1:] >= wanted).all()):
            inside = (mass - best < wanted).sum(-1, keepdim=True)
            return best.gather(1, (inside - 1).clamp(min=0))  # none where they are not finite
        size = min(4 * size, weights.shape[1])


def inverse_cdf(weights: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the running sum passes a share of the whole sum.

    The law of `torch.multinomial` at a fraction of its time. Running sums are in fp64: in fp32 the
    rounding of a sum over a large vocabulary reaches the weight of its rare tokens.

    Args:
        weights: [R, V] >= 0, each row with one at least > 0.
        uniform: [R] in fp64, in [0, 1).

    Returns:
        [R] token ids, none with weight 0.
    """
    vocabulary = weights.shape[1]
    whole = vocabulary // BLOCK * BLOCK
    sums = weights[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1)
    if whole < vocabulary:
        sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], dim=1)
    block, left = _passing(sums, uniform[:, None])
    token = block * BLOCK + torch.arange(BLOCK, device=weights.device)
    inside = weights.gather(1, token.clamp(max=vocabulary - 1))
    offset, _ = _passing(inside.masked_fill(token >= vocabulary, 0), left)
    return (block * BLOCK + offset).squeeze(1)


def _running_sum(values: Tensor) -> Tensor:
    """[R, n] fp64: sums along each row, up to and with each value.

    CUDA's `cumsum` adds in another order each time, and torch refuses it where algorithms have to
    be deterministic; there it is a product with a triangle of ones.
    """
    if not (values.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return values.cumsum(-1, dtype=torch.float64)
    ones = values.new_ones(values.shape[-1], values.shape[-1], dtype=torch.float64)
    return values.double() @ ones.triu()


def _passing(weights: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """[R, 1] index where the running sum passes a share [R, 1] of it, and the share of that one."""
    running = _running_sum(weights)
    whole = running[:, -1:].contiguous()
    target = share * whole
    index = torch.searchsorted(running, target, right=True)
    # a share just under 1 may round to the whole sum: then the last one that has any weight
    last = torch.searchsorted(running, whole)
    index = torch.minimum(index, last).clamp(max=weights.shape[1] - 1)  # sums that are not finite
    own = weights.gather(1, index).double()
    before = running.gather(1, index) - own
    return index, ((target - before) / own).clamp(0, 1)

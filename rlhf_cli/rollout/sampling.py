"""Sampling of tokens from logits.

Each token takes one uniform random number from its own response's generator, so that a sampled
token does not depend on the other responses of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rlhf_cli.errors import NonFinite
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.response import Response

BLOCK_SIZE = 256
"""Tokens in a block: the cumulative sum runs over blocks, then over the tokens of one block."""

NON_FINITE = -1
"""Marks a row of non-finite logits in place of a token id, so that one transfer carries both."""

TOP_P_CANDIDATES = 1024
"""Number of most likely tokens that are sorted first to find a nucleus; more where needed."""


def row_rng(seed: int, prompt: int, sample: int) -> np.random.Generator:
    """Random generator of one response, seeded by its prompt's and its sample's number."""
    # numpy mixes the three into 128 bits; torch's CPU generator takes 32
    return np.random.default_rng((seed, prompt, sample))


class Sampler:
    """Samples the next token of each active response.

    Args:
        sampling: temperature, truncation and minimum length.
        end_ids: tokens that end a response, for `min_new_tokens`.
        seeds: of each response, by its index.
        keep_logprobs: append the log-prob of each token to its response, under the whole
            distribution at the temperature, which must be > 0.
    """

    def __init__(
        self,
        sampling: SamplingConfig,
        end_ids: Sequence[int],
        seeds: Sequence[tuple[int, int, int]],
        *,
        keep_logprobs: bool,
    ) -> None:
        self._sampling, self._end_ids = sampling, list(end_ids)
        self._keep_logprobs = keep_logprobs
        self._rngs = [row_rng(*seed) for seed in seeds]

    def __call__(self, logits: Tensor, active: Sequence[Response]) -> list[int]:
        """Sample a token for each active response.

        Args:
            logits: [R, V] fp32; overwritten.
            active: R responses, whose `logprobs` grow where they are kept.

        Raises:
            NonFinite: a row's logits are not finite.
        """
        logprobs = None
        if self._keep_logprobs:
            logprobs = (logits / self._sampling.temperature).log_softmax(-1)
        self._mask_early_end_tokens(logits, active)
        numbers = [self._rngs[response.index].random() for response in active]
        uniform = torch.tensor(numbers, dtype=torch.float64)
        drawn = sample_tokens(logits, uniform.to(logits.device, non_blocking=True), self._sampling)
        if logprobs is None:
            tokens: list[int] = drawn.tolist()
        else:
            own = logprobs.gather(1, drawn.clamp(min=0)[:, None]).squeeze(1)
            # one transfer for both: fp64 holds every id and every fp32 number exactly
            ids, kept = torch.stack([drawn.double(), own.double()]).tolist()
            tokens = [int(token) for token in ids]
            for response, logprob in zip(active, kept, strict=True):
                response.logprobs.append(logprob)
        if NON_FINITE in tokens:
            raise NonFinite("sampling: the model's logits are not finite; its weights are damaged")
        return tokens

    def _mask_early_end_tokens(self, logits: Tensor, active: Sequence[Response]) -> None:
        minimum = self._sampling.min_new_tokens
        short = [slot for slot, response in enumerate(active) if len(response.token_ids) < minimum]
        if short:
            end_ids = [token for token in self._end_ids if token < logits.shape[1]]
            pairs = [(slot, end) for slot in short for end in end_ids]
            index = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
            rows, columns = index.to(logits.device, non_blocking=True).unbind(1)
            logits[rows, columns] = -torch.inf


def sample_tokens(logits: Tensor, uniform: Tensor, sampling: SamplingConfig) -> Tensor:
    """Sample one token per row.

    Args:
        logits: [R, V] fp32; overwritten.
        uniform: [R] fp64 in [0, 1); unused at temperature 0.
        sampling: temperature, then top_k, then top_p of what is left, then min_p.

    Returns:
        [R] token ids; `NON_FINITE` where a row's largest logit is not finite.
    """
    largest, argmax = logits.max(-1, keepdim=True)
    if sampling.temperature == 0:
        drawn = argmax.squeeze(1)
    else:
        weights = logits.sub_(largest).div_(sampling.temperature).exp_()
        drawn = inverse_cdf(truncate(weights, sampling), uniform)
    return torch.where(largest.squeeze(1).isfinite(), drawn, NON_FINITE)


def truncate(weights: Tensor, sampling: SamplingConfig) -> Tensor:
    """Set the weight of tokens that top_k, top_p or min_p drop to zero; ties are kept.

    Args:
        weights: [R, V], probabilities up to a factor; the largest of a row is 1. Overwritten.
        sampling: top_k, top_p, min_p.
    """
    if 0 < sampling.top_k < weights.shape[1]:
        threshold = weights.topk(sampling.top_k).values[:, -1:]
        weights.masked_fill_(weights < threshold, 0)
    if sampling.top_p < 1:
        weights.masked_fill_(weights < _top_p_threshold(weights, sampling.top_p), 0)
    if sampling.min_p > 0:
        weights.masked_fill_(weights < sampling.min_p, 0)
    return weights


def _top_p_threshold(weights: Tensor, top_p: float) -> Tensor:
    """[R, 1]: smallest weight among the fewest most likely tokens with the mass `top_p`."""
    wanted = top_p * weights.sum(-1, keepdim=True, dtype=torch.float64)
    size = min(TOP_P_CANDIDATES, weights.shape[1])
    while True:
        best = weights.topk(size).values
        mass = _cumulative_sum(best)
        if size == weights.shape[1] or bool((mass[:, -1:] >= wanted).all()):
            inside = (mass - best < wanted).sum(-1, keepdim=True)
            return best.gather(1, (inside - 1).clamp(min=0))  # none where they are not finite
        size = min(4 * size, weights.shape[1])


def inverse_cdf(weights: Tensor, uniform: Tensor) -> Tensor:
    """Sample by inverting the cumulative distribution function.

    Same distribution as `torch.multinomial` in a fraction of its time. Cumulative sums are in fp64:
    in fp32 the rounding of a sum over a large vocabulary reaches the weight of its rare tokens.

    Args:
        weights: [R, V] >= 0, at least one per row > 0.
        uniform: [R] fp64 in [0, 1).

    Returns:
        [R] token ids, none with weight 0.
    """
    vocabulary = weights.shape[1]
    whole = vocabulary // BLOCK_SIZE * BLOCK_SIZE
    sums = weights[:, :whole].unflatten(1, (-1, BLOCK_SIZE)).sum(-1)
    if whole < vocabulary:
        sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], dim=1)
    block, remainder = _invert_cumulative_sum(sums, uniform[:, None])
    token = block * BLOCK_SIZE + torch.arange(BLOCK_SIZE, device=weights.device)
    inside = weights.gather(1, token.clamp(max=vocabulary - 1))
    offset, _ = _invert_cumulative_sum(inside.masked_fill(token >= vocabulary, 0), remainder)
    return (block * BLOCK_SIZE + offset).squeeze(1)


def _cumulative_sum(values: Tensor) -> Tensor:
    """[R, n] fp64: inclusive cumulative sum along each row.

    CUDA's `cumsum` adds in another order each time, and torch refuses it where algorithms have to
    be deterministic; there it is a product with a triangle of ones.
    """
    if not (values.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return values.cumsum(-1, dtype=torch.float64)
    ones = values.new_ones(values.shape[-1], values.shape[-1], dtype=torch.float64)
    return values.double() @ ones.triu()


def _invert_cumulative_sum(weights: Tensor, fraction: Tensor) -> tuple[Tensor, Tensor]:
    """Find where the cumulative sum of each row passes a fraction of its total.

    Args:
        weights: [R, n] >= 0.
        fraction: [R, 1] in [0, 1).

    Returns:
        [R, 1] index, and [R, 1] how far into the weight at that index, in [0, 1].
    """
    cumulative = _cumulative_sum(weights)
    total = cumulative[:, -1:].contiguous()
    target = fraction * total
    index = torch.searchsorted(cumulative, target, right=True)
    # a fraction just under 1 may round to the total: then the last one that has any weight
    last = torch.searchsorted(cumulative, total)
    index = torch.minimum(index, last).clamp(max=weights.shape[1] - 1)  # sums that are not finite
    own = weights.gather(1, index).double()
    before = cumulative.gather(1, index) - own
    return index, ((target - before) / own).clamp(0, 1)

"""Advantages of a rollout: from scores and KL per token to training targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.losses.advantages import (
    gae,
    gdpo_advantages,
    grpo_advantages,
    rloo_advantages,
    whiten,
)
from rlhf_cli.losses.kl import kl_estimate
from rlhf_cli.stages.ppo.advantage_config import GROUPED
from rlhf_cli.stages.ppo.config import PPOConfig


@dataclass(frozen=True)
class RolloutTensors:
    """Responses of a rollout as tensors, padded on the right: B responses of at most T tokens.

    Attributes:
        logprobs: [B, T], nats, of each token under the policy that sampled it.
        ref_logprobs: [B, T], nats, under the reference.
        values: [B, T], of the value model; zeros without one.
        response_mask: [B, T] bool, True for tokens of a response.
        value_mask: [B, T] bool, True where a value counts: `response_mask`, with `compat=trl` also
            the position after an end token.
        scores: [B], of each whole response.
        samples: responses per prompt, which are adjacent.
        terms: [B, K], scores of each of K reward terms, for `normalize_rewards=each`.
    """

    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    response_mask: Tensor
    value_mask: Tensor
    scores: Tensor
    samples: int = 1
    terms: Tensor | None = None


@dataclass(frozen=True)
class Experience:
    """Training targets of the responses of a rollout.

    Attributes:
        advantages: [B, T]; zero where there is no token.
        returns: [B, T], targets of the value model.
        rewards: [B, T], not whitened: minus the KL penalty, plus the score at the last position.
        kl: [B, T], nats, k1 estimate; zero where there is no token.
    """

    advantages: Tensor
    returns: Tensor
    rewards: Tensor
    kl: Tensor


def compute_advantages(
    tensors: RolloutTensors, cfg: PPOConfig, kl_coef: float, ranks: Ranks
) -> Experience:
    """Compute rewards, advantages and returns, whitened over all ranks.

    Args:
        tensors: this rank's responses.
        cfg: estimators and switches.
        kl_coef: current KL penalty coefficient.
        ranks: whitening counts the responses of all.
    """
    rewards = _token_rewards(tensors, cfg, kl_coef)
    whitened = rewards
    if cfg.whiten_rewards:
        whitened = _whiten(rewards, tensors.value_mask, ranks, keep_mean=True)
    if cfg.has_value_model:
        advantages, returns = gae(
            whitened,
            tensors.values,
            tensors.value_mask,
            gamma=cfg.gamma,
            gae_lambda=cfg.gae_lambda,
        )
    else:
        advantages = _advantages_without_values(tensors, whitened, cfg, ranks)
        returns = torch.zeros_like(advantages)
    if cfg.whitens:
        advantages = _whiten(advantages, tensors.response_mask, ranks)
    kl = kl_estimate(tensors.logprobs, tensors.ref_logprobs, "k1") * tensors.response_mask
    return Experience(advantages * tensors.response_mask, returns, rewards, kl)


def has_signal(
    scores: Tensor, cfg: PPOConfig, kl_coef: float, terms: Tensor | None = None
) -> list[bool]:
    """Whether each response can have a gradient, as far as the scores alone show.

    Where responses to one prompt are compared and nothing but their scores counts, a prompt whose
    responses all have the same score has advantages of 0.

    Args:
        scores: [B], of each whole response.
        cfg: estimators and switches.
        kl_coef: current KL penalty coefficient.
        terms: [B, K], scores of each reward term, where they are compared apart.
    """
    beside = kl_coef or cfg.whiten_rewards or cfg.has_entropy_bonus
    if cfg.advantage not in GROUPED or beside:
        return [True] * len(scores)
    compared = scores[:, None] if terms is None else terms
    groups = compared.reshape(-1, cfg.samples_per_prompt, compared.shape[1])
    differ: list[bool] = (groups != groups[:, :1]).any(2).any(1).tolist()
    return [one for one in differ for _ in range(cfg.samples_per_prompt)]


def _token_rewards(tensors: RolloutTensors, cfg: PPOConfig, kl_coef: float) -> Tensor:
    """[B, T]: minus the KL penalty of each token, plus the score at the last position."""
    kl = kl_estimate(tensors.logprobs, tensors.ref_logprobs, cfg.kl_estimator)
    kl = kl * tensors.response_mask
    penalty = kl_coef if cfg.kl_in == "reward" else 0.0
    last = tensors.value_mask.sum(1, keepdim=True) - 1
    return (-penalty * kl).scatter_add(1, last, tensors.scores[:, None])


def _advantages_without_values(
    tensors: RolloutTensors, rewards: Tensor, cfg: PPOConfig, ranks: Ranks
) -> Tensor:
    """[B, T]: advantages of the estimators that have no value model."""
    if cfg.advantage == "reinforce_pp":  # each token gets the rewards after it (Hu 2025)
        return rewards.flip(1).cumsum(1).flip(1)
    total = rewards.sum(1).reshape(len(rewards) // tensors.samples, tensors.samples)
    if tensors.terms is not None:
        advantages = _gdpo(tensors.terms, tensors.samples, cfg, ranks)
    elif cfg.advantage == "grpo":
        everything = ranks.all_gather_concat(total.flatten()) if cfg.scale == "batch" else None
        advantages = grpo_advantages(total, cfg.scale, all_scores=everything)
    elif cfg.advantage == "rloo":
        advantages = rloo_advantages(total)
    else:
        every = ranks.all_gather_concat(total.flatten()).tolist()
        advantages = total - sum(every) / len(every)
    return advantages.reshape(-1, 1).expand_as(rewards)


def _gdpo(terms: Tensor, samples: int, cfg: PPOConfig, ranks: Ranks) -> Tensor:
    """[prompts, samples]: sum of the terms' advantages, over its deviation in the whole rollout.

    Its mean is 0, because that of each group is; so nothing is subtracted, and a group of equal
    scores keeps advantages of exactly 0.
    """
    weights = torch.tensor([term.weight for term in cfg.reward.all_terms], dtype=terms.dtype)
    total = gdpo_advantages(terms.reshape(-1, samples, terms.shape[1]), weights)
    return total / (ranks.all_gather_concat(total.flatten()).std() + 1e-4)


def _whiten(values: Tensor, mask: Tensor, ranks: Ranks, *, keep_mean: bool = False) -> Tensor:
    return whiten(
        values, mask, all_values=ranks.all_gather_concat(values[mask]), keep_mean=keep_mean
    )

"""From responses and their scores to what an update learns of each token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_cli.distributed import Ranks
from rlhf_cli.losses.ppo import gae, grpo_advantages, kl_estimate, rloo_advantages, whiten
from rlhf_cli.stages.ppo.config import GROUPED, PPOConfig


@dataclass(frozen=True)
class Responses:
    """The responses of a rollout as tables, padded on the right; B rows, T positions at most.

    Attributes:
        logp: [B, T], nats, of each token under the policy that wrote it.
        ref_logp: [B, T], under the reference.
        value: [B, T], what was expected from this token on; zeros without a value model.
        sampled: [B, T] bool, True for the tokens of a response.
        valued: [B, T] bool, True where a value counts: the same tokens, with `compat=trl` also the
            position behind an end token.
        score: [B], of each whole response.
        samples: responses to each prompt, which stand together.
    """

    logp: Tensor
    ref_logp: Tensor
    value: Tensor
    sampled: Tensor
    valued: Tensor
    score: Tensor
    samples: int = 1


@dataclass(frozen=True)
class Experience:
    """What the updates learn from.

    Attributes:
        advantage: [B, T]; zero where there is no token.
        target: [B, T], what the value model is drawn to.
        reward: [B, T], of each token, not whitened: the price of its KL, and the score at the last
            position.
        kl: [B, T], nats, k1; zero where there is no token.
    """

    advantage: Tensor
    target: Tensor
    reward: Tensor
    kl: Tensor


def shape(found: Responses, cfg: PPOConfig, kl_coef: float, ranks: Ranks) -> Experience:
    """Rewards of tokens, advantages, and their whitening over all ranks.

    Args:
        found: this rank's responses.
        cfg: estimators and switches.
        kl_coef: the coefficient now.
        ranks: whitening counts the responses of all.
    """
    plain = _token_rewards(found, cfg, kl_coef)
    reward = plain
    if cfg.whiten_rewards:
        reward = _whiten(plain, found.valued, ranks, keep_mean=True)
    if cfg.has_value_model:
        advantage, target = gae(
            reward, found.value, found.valued, gamma=cfg.gamma, gae_lambda=cfg.gae_lambda
        )
    else:
        advantage = _without_values(found, reward, cfg, ranks)
        target = torch.zeros_like(advantage)
    if cfg.whitens:
        advantage = _whiten(advantage, found.sampled, ranks)
    kl = kl_estimate(found.logp, found.ref_logp, "k1") * found.sampled
    return Experience(advantage * found.sampled, target, plain, kl)


def teaches(score: Tensor, cfg: PPOConfig, kl_coef: float) -> list[bool]:
    """Whether anything can be learned of each response, as far as that is known beforehand.

    Where responses to one prompt are compared and nothing but their scores counts, a prompt whose
    responses all have the same score has advantages of 0.

    Args:
        score: [B], of each whole response.
        cfg: estimators and switches.
        kl_coef: the coefficient now.
    """
    if cfg.advantage not in GROUPED or kl_coef or cfg.whiten_rewards:
        return [True] * len(score)
    groups = score.reshape(-1, cfg.samples_per_prompt)
    differ: list[bool] = (groups != groups[:, :1]).any(1).tolist()
    return [one for one in differ for _ in range(cfg.samples_per_prompt)]


def _token_rewards(found: Responses, cfg: PPOConfig, kl_coef: float) -> Tensor:
    """[B, T]: the price of each token's KL, and the score at the response's last position."""
    kl = kl_estimate(found.logp, found.ref_logp, cfg.kl_estimator) * found.sampled
    price = kl_coef if cfg.kl_in == "reward" else 0.0
    last = found.valued.sum(1, keepdim=True) - 1
    return (-price * kl).scatter_add(1, last, found.score[:, None])


def _without_values(found: Responses, reward: Tensor, cfg: PPOConfig, ranks: Ranks) -> Tensor:
    """[B, T]: how much better a response is than others."""
    if cfg.advantage == "reinforce_pp":  # each token answers for what comes after it (Hu 2025)
        return reward.flip(1).cumsum(1).flip(1)
    total = reward.sum(1).reshape(len(reward) // found.samples, found.samples)
    if cfg.advantage == "grpo":
        of_response = grpo_advantages(total)
    elif cfg.advantage == "rloo":
        of_response = rloo_advantages(total)
    else:
        every = ranks.all_gather_concat(total.flatten()).tolist()
        of_response = total - sum(every) / len(every)
    return of_response.reshape(-1, 1).expand_as(reward)


def _whiten(values: Tensor, mask: Tensor, ranks: Ranks, *, keep_mean: bool = False) -> Tensor:
    return whiten(
        values, mask, all_values=ranks.all_gather_concat(values[mask]), keep_mean=keep_mean
    )

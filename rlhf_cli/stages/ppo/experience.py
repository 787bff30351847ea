"""Experience of a rollout: log-probs, values, rewards, advantages and returns of its responses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.equal_passes import equal_passes
from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.losses.advantages import gae, grpo_advantages, rloo_advantages, whiten
from rlhf_cli.losses.kl import kl_estimate
from rlhf_cli.losses.reduction import Metrics
from rlhf_cli.memory.phase import phase
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.wrapper import without_dropout
from rlhf_cli.rollout.response import Response
from rlhf_cli.stages.ppo.advantage_config import GROUPED
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.ppo.minibatches import (
    RESPONSE_MASK,
    VALUE_MASK,
    MicroBatch,
    make_minibatches,
    pad_table,
    response_masks,
)
from rlhf_cli.stages.reference import ReferenceModel


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
    """

    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    response_mask: Tensor
    value_mask: Tensor
    scores: Tensor
    samples: int = 1


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


@dataclass(frozen=True)
class RolloutBatch:
    """Training batch of a rollout.

    Attributes:
        minibatches: micro-batches of each minibatch, with the experience as token columns.
        kl: [B], nats, log-ratio of policy to reference of each of this rank's responses.
        metrics: sums and counts over this rank's responses.
    """

    minibatches: list[list[TokenBatch]]
    kl: Tensor
    metrics: Metrics


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


def has_signal(scores: Tensor, cfg: PPOConfig, kl_coef: float) -> list[bool]:
    """Whether each response can have a gradient, as far as the scores alone show.

    Where responses to one prompt are compared and nothing but their scores counts, a prompt whose
    responses all have the same score has advantages of 0.

    Args:
        scores: [B], of each whole response.
        cfg: estimators and switches.
        kl_coef: current KL penalty coefficient.
    """
    if cfg.advantage not in GROUPED or kl_coef or cfg.whiten_rewards:
        return [True] * len(scores)
    groups = scores.reshape(-1, cfg.samples_per_prompt)
    differ: list[bool] = (groups != groups[:, :1]).any(1).tolist()
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
    if cfg.advantage == "grpo":
        advantages = grpo_advantages(total)
    elif cfg.advantage == "rloo":
        advantages = rloo_advantages(total)
    else:
        everything = ranks.all_gather_concat(total.flatten()).tolist()
        advantages = total - sum(everything) / len(everything)
    return advantages.reshape(-1, 1).expand_as(rewards)


def _whiten(values: Tensor, mask: Tensor, ranks: Ranks, *, keep_mean: bool = False) -> Tensor:
    return whiten(
        values, mask, all_values=ranks.all_gather_concat(values[mask]), keep_mean=keep_mean
    )


class ExperienceMaker:
    """Makes training batches of scored responses.

    Args:
        cfg: estimators and switches.
        policy: sampled the responses; has a value model where `cfg` needs one.
        reference: the policy is regularized towards it.
        ranks: share the responses of a rollout.
        max_tokens: tokens of a micro-batch.
    """

    def __init__(
        self,
        cfg: PPOConfig,
        policy: Policy,
        reference: ReferenceModel,
        ranks: Ranks,
        max_tokens: int,
    ) -> None:
        self.cfg, self.policy, self.reference = cfg, policy, reference
        self.ranks, self.max_tokens = ranks, max_tokens

    @phase("prepare")
    def make(self, responses: Sequence[Response], scores: Tensor, kl_coef: float) -> RolloutBatch:
        """Make the training batch of this rank's responses; all ranks call it together.

        Args:
            responses: possibly none.
            scores: [B] fp32, of each response.
            kl_coef: current KL penalty coefficient.
        """
        cfg = self.cfg
        signal = has_signal(scores, cfg, kl_coef)
        minibatches = make_minibatches(
            responses, cfg.minibatches, self.max_tokens, self.policy.device, signal
        )
        with torch.no_grad(), without_dropout(self.policy):
            tensors = self._compute_tensors(minibatches, responses, scores)
        experience = compute_advantages(tensors, cfg, kl_coef, self.ranks)
        columns = {
            RESPONSE_MASK: tensors.response_mask,
            VALUE_MASK: tensors.value_mask,
            "old_logprobs": tensors.logprobs,
            "ref_logprobs": tensors.ref_logprobs,
            "old_values": tensors.values,
            "advantages": experience.advantages,
            "returns": experience.returns,
        }
        metrics = _metrics(tensors, experience)
        metrics["objective/teaching"] = (torch.tensor(float(sum(signal))), float(len(signal)))
        if cfg.has_value_model:
            metrics |= _explained_variance(tensors, experience, self.ranks)
        rows = [[micro.with_columns(columns) for micro in micros] for micros in minibatches]
        return RolloutBatch(rows, experience.kl.sum(1), metrics)

    def compute_kl(self, responses: Sequence[Response]) -> Tensor:
        """[B], nats: log-ratio of policy to reference, summed over each response."""
        found: dict[int, Tensor] = {}
        [micros] = make_minibatches(responses, 1, self.max_tokens, self.policy.device)
        temperature = self.cfg.sampling.temperature
        with torch.no_grad(), without_dropout(self.policy):
            for micro, rows in self._passes(micros):
                ratio = self.policy(rows, temperature=temperature, sampled=True).logp
                ratio = ratio - self.reference.logprobs(rows, temperature)
                found |= micro.split(ratio) if micro else {}
        mask = response_masks(responses)[RESPONSE_MASK]
        return (pad_table(found, len(responses)) * mask).sum(1)

    def _compute_tensors(
        self,
        minibatches: Sequence[Sequence[MicroBatch]],
        responses: Sequence[Response],
        scores: Tensor,
    ) -> RolloutTensors:
        cfg = self.cfg
        logprobs: dict[int, Tensor] = {}
        ref_logprobs: dict[int, Tensor] = {}
        values: dict[int, Tensor] = {}
        if cfg.reuses_logprobs:
            logprobs = {k: torch.tensor(one.logprobs) for k, one in enumerate(responses)}
        for micro, rows in self._passes([one for micros in minibatches for one in micros]):
            own, value = self._run_policy(rows)
            reference = self.reference.logprobs(rows, cfg.sampling.temperature)
            if micro is None:
                continue
            if own is not None:
                logprobs |= micro.split(own)
            if value is not None:
                values |= micro.split(value)
            ref_logprobs |= micro.split(reference)
        count, masks = len(responses), response_masks(responses)
        padded = pad_table(logprobs, count)
        return RolloutTensors(
            padded,
            pad_table(ref_logprobs, count),
            pad_table(values, count) if cfg.has_value_model else torch.zeros_like(padded),
            masks[RESPONSE_MASK],
            masks[VALUE_MASK],
            scores,
            cfg.samples_per_prompt,
        )

    def _passes(
        self, micros: Sequence[MicroBatch]
    ) -> Iterator[tuple[MicroBatch | None, TokenBatch]]:
        """Micro-batches and their rows; rows without a micro-batch only fill up the passes."""
        own = [replace(one.rows, needs_backward=False) for one in micros]
        yield from zip_longest(micros, equal_passes(own, self.ranks, self.policy.device))

    def _run_policy(self, rows: TokenBatch) -> tuple[Tensor | None, Tensor | None]:
        """[S] log-probs, None where the sampler's are reused, and [S] values, None without them.

        The policy computes nothing that is not needed.
        """
        cfg = self.cfg
        if cfg.reuses_logprobs:
            return None, self.policy.values(rows) if cfg.has_value_model else None
        want = {"logp"} | ({"value"} if cfg.has_value_model else set())
        out = self.policy(rows, want=want, temperature=cfg.sampling.temperature, sampled=True)
        return out.logp, out.value


def _metrics(tensors: RolloutTensors, experience: Experience) -> Metrics:
    """Metrics that are a mean over responses of a sum over their tokens."""
    rows = float(len(tensors.scores))
    by_response = {
        "objective/kl": experience.kl.sum(1),
        "objective/entropy": -(tensors.logprobs * tensors.response_mask).sum(1),
        "objective/non_score_reward": experience.rewards.sum(1) - tensors.scores,
        "objective/rlhf_reward": experience.rewards.sum(1),
        "objective/scores": tensors.scores,
    }
    return {name: (values.sum(), rows) for name, values in by_response.items()}


def _explained_variance(tensors: RolloutTensors, experience: Experience, ranks: Ranks) -> Metrics:
    """Share of the returns' variance that the values explain, over the responses of all ranks."""
    returns = ranks.all_gather_concat(experience.returns[tensors.value_mask])
    values = ranks.all_gather_concat(tensors.values[tensors.value_mask])
    if len(returns) < 2 or returns.var() == 0:
        return {}
    once = int(ranks.is_main)
    explained = 1 - (returns - values).var() / returns.var()
    return {"value/explained_variance": (once * explained, once)}

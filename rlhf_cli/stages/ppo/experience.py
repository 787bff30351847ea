"""Experience of a rollout: log-probs, values, rewards, advantages and returns of its responses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest

import torch
from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.equal_passes import equal_passes
from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.losses.reduction import Metrics
from rlhf_cli.memory.phase import phase
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.wrapper import without_dropout
from rlhf_cli.rollout.response import Response
from rlhf_cli.stages.ppo.advantages import (
    Experience,
    RolloutTensors,
    compute_advantages,
    has_signal,
)
from rlhf_cli.stages.ppo.columns import policy_columns
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.ppo.correction import correct
from rlhf_cli.stages.reference import ReferenceModel
from rlhf_cli.stages.rollouts.minibatches import (
    RESPONSE_MASK,
    VALUE_MASK,
    MicroBatch,
    make_minibatches,
    pad_table,
    response_masks,
)
from rlhf_cli.stages.rollouts.rows import response_kl, response_logprobs


@dataclass(frozen=True)
class RolloutBatch:
    """Training batch of a rollout.

    Attributes:
        minibatches: micro-batches of each minibatch, with the experience as token columns.
        kl: [B], nats, log-ratio of policy to reference of each of this rank's responses.
        metrics: sums and counts over this rank's responses.
        divide_again: divides the responses of all ranks into other minibatches, with the same
            experience; called with the place of each response's index.
    """

    minibatches: list[list[TokenBatch]]
    kl: Tensor
    metrics: Metrics
    divide_again: Callable[[Sequence[int]], list[list[TokenBatch]]]


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
    def make(
        self,
        responses: Sequence[Response],
        scores: Tensor,
        kl_coef: float,
        terms: Tensor | None = None,
    ) -> RolloutBatch:
        """Make the training batch of this rank's responses; all ranks call it together.

        Args:
            responses: possibly none.
            scores: [B] fp32, of each response.
            kl_coef: current KL penalty coefficient.
            terms: [B, K] fp32, scores of each reward term, for `normalize_rewards=each`.
        """
        cfg = self.cfg
        signal = has_signal(scores, cfg, kl_coef, terms)
        if cfg.mask_truncated and not cfg.has_value_model:
            signal = [of and one.finished for of, one in zip(signal, responses, strict=True)]
        divide = partial(
            make_minibatches,
            responses,
            cfg.minibatches,
            self.max_tokens,
            self.policy.device,
            signal,
        )
        minibatches = divide()
        with torch.no_grad(), without_dropout(self.policy):
            tensors = self._compute_tensors(minibatches, responses, scores)
        tensors = replace(tensors, terms=terms)
        experience = compute_advantages(tensors, cfg, kl_coef, self.ranks)
        columns = {
            RESPONSE_MASK: tensors.response_mask,
            VALUE_MASK: tensors.value_mask,
            "old_logprobs": tensors.logprobs,
            "ref_logprobs": tensors.ref_logprobs,
            "old_values": tensors.values,
            "advantages": experience.advantages,
            "returns": experience.returns,
            **policy_columns(responses, cfg),
        }
        metrics = _metrics(tensors, experience)
        metrics["objective/teaching"] = (torch.tensor(float(sum(signal))), float(len(signal)))
        if cfg.rollout.is_used and not cfg.reuses_logprobs:
            weights, found = correct(responses, tensors, cfg.rollout)
            columns |= weights
            metrics |= found
        if cfg.has_value_model:
            metrics |= _explained_variance(tensors, experience, self.ranks)

        def with_experience(divided: list[list[MicroBatch]]) -> list[list[TokenBatch]]:
            return [[micro.with_columns(columns) for micro in micros] for micros in divided]

        return RolloutBatch(
            with_experience(minibatches),
            experience.kl.sum(1),
            metrics,
            lambda order: with_experience(divide(order)),
        )

    def compute_kl(self, responses: Sequence[Response]) -> Tensor:
        """[B], nats: log-ratio of policy to reference, summed over each response."""
        return response_kl(
            responses,
            self.policy,
            self.reference,
            self.ranks,
            max_tokens=self.max_tokens,
            temperature=self.cfg.sampling.temperature,
        )

    def compute_logprobs(self, responses: Sequence[Response], temperature: float) -> Tensor:
        """[B, T], nats: log p of each token under the current policy; zero after a response."""
        return response_logprobs(
            responses,
            self.policy,
            self.ranks,
            max_tokens=self.max_tokens,
            temperature=temperature,
        )

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

"""From responses with scores to the updates of a step, and what is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.distributed import Ranks
from rlhf_cli.losses.reduce import Metrics
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.wrapper import without_dropout
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.ppo.experience import Experience, Responses, shape, teaches
from rlhf_cli.stages.ppo.loss import SAMPLED, VALUED
from rlhf_cli.stages.ppo.rows import MicroBatch, Written, masks, minibatches, table
from rlhf_cli.stages.reference import Held


@dataclass(frozen=True)
class Lesson:
    """What a rollout teaches.

    Attributes:
        minibatches: micro-batches of each minibatch, with what is known of each token beside it.
        kl: [B], nats, of each of this rank's responses: log-ratio to the reference.
        metrics: sums and counts over this rank's responses.
    """

    minibatches: list[list[TokenBatch]]
    kl: Tensor
    metrics: Metrics


class Teacher:
    """Computes log-probs and values of responses, and shapes rewards and advantages of them.

    Args:
        cfg: estimators and switches.
        policy: wrote the responses; has a value model where `cfg` needs one.
        reference: what the policy is held to.
        ranks: share the responses of a rollout.
        max_tokens: of a micro-batch.
    """

    def __init__(
        self, cfg: PPOConfig, policy: Policy, reference: Held, ranks: Ranks, max_tokens: int
    ) -> None:
        self.cfg, self.policy, self.reference = cfg, policy, reference
        self.ranks, self.max_tokens = ranks, max_tokens

    def teach(self, responses: Sequence[Written], score: Tensor, kl_coef: float) -> Lesson:
        """The updates of one epoch over this rank's responses; all ranks call it together.

        Args:
            responses: perhaps none.
            score: [B] fp32, of each.
            kl_coef: the price of KL now.
        """
        useful = teaches(score, self.cfg, kl_coef)
        device = self.policy.device
        parts = minibatches(responses, self.cfg.minibatches, self.max_tokens, device, useful)
        with torch.no_grad(), without_dropout(self.policy):
            found = self._measure(parts, responses, score)
        learned = shape(found, self.cfg, kl_coef, self.ranks)
        tables = {
            SAMPLED: found.sampled,
            VALUED: found.valued,
            "old_logp": found.logp,
            "ref_logp": found.ref_logp,
            "old_value": found.value,
            "advantage": learned.advantage,
            "target": learned.target,
        }
        metrics = _metrics(found, learned)
        metrics["objective/teaching"] = (torch.tensor(float(sum(useful))), float(len(useful)))
        if self.cfg.has_value_model:
            metrics |= _explained_variance(found, learned, self.ranks)
        rows = [[micro.with_columns(tables) for micro in part] for part in parts]
        return Lesson(rows, learned.kl.sum(1), metrics)

    def kl_of(self, responses: Sequence[Written]) -> Tensor:
        """[B], nats: the log-ratio of policy to reference, of whole responses."""
        found: dict[int, Tensor] = {}
        [part] = minibatches(responses, 1, self.max_tokens, self.policy.device)
        temperature = self.cfg.sampling.temperature
        with torch.no_grad(), without_dropout(self.policy):
            for micro in part:
                ratio = self.policy(micro.rows, temperature=temperature, sampled=True).logp
                ratio = ratio - self.reference.logprobs(micro.rows, temperature)
                found |= micro.cut(ratio)
        return (table(found, len(responses)) * masks(responses)[SAMPLED]).sum(1)

    def _measure(
        self, parts: Sequence[Sequence[MicroBatch]], responses: Sequence[Written], score: Tensor
    ) -> Responses:
        cfg = self.cfg
        logp: dict[int, Tensor] = {}
        ref: dict[int, Tensor] = {}
        value: dict[int, Tensor] = {}
        if cfg.reuses_logprobs:
            logp = {k: torch.tensor(one.logprobs) for k, one in enumerate(responses)}
        for micro in (micro for part in parts for micro in part):
            own, expected = self._of_policy(micro.rows)
            if own is not None:
                logp |= micro.cut(own)
            if expected is not None:
                value |= micro.cut(expected)
            ref |= micro.cut(self.reference.logprobs(micro.rows, cfg.sampling.temperature))
        count, kept = len(responses), masks(responses)
        logprobs = table(logp, count)
        return Responses(
            logprobs,
            table(ref, count),
            table(value, count) if cfg.has_value_model else torch.zeros_like(logprobs),
            kept[SAMPLED],
            kept[VALUED],
            score,
            cfg.samples_per_prompt,
        )

    def _of_policy(self, rows: TokenBatch) -> tuple[Tensor | None, Tensor | None]:
        """[S] log-probs, unless the sampled ones are reused, and values, if there is a value model.

        The policy makes no pass for what is not needed.
        """
        cfg = self.cfg
        if cfg.reuses_logprobs:
            return None, self.policy.values(rows) if cfg.has_value_model else None
        want = {"logp"} | ({"value"} if cfg.has_value_model else set())
        out = self.policy(rows, want=want, temperature=cfg.sampling.temperature, sampled=True)
        return out.logp, out.value


def _metrics(found: Responses, learned: Experience) -> Metrics:
    """By the field's names; each a mean over responses, of what it is over their tokens."""
    rows = float(len(found.score))
    by_row = {
        "objective/kl": learned.kl.sum(1),
        "objective/entropy": -(found.logp * found.sampled).sum(1),
        "objective/non_score_reward": learned.reward.sum(1) - found.score,
        "objective/rlhf_reward": learned.reward.sum(1),
        "objective/scores": found.score,
    }
    return {name: (values.sum(), rows) for name, values in by_row.items()}


def _explained_variance(found: Responses, learned: Experience, ranks: Ranks) -> Metrics:
    """How much of the returns' variance the values explain, over the responses of all ranks."""
    target = ranks.concatenate(learned.target[found.valued])
    value = ranks.concatenate(found.value[found.valued])
    if len(target) < 2 or target.var() == 0:
        return {}
    once = int(ranks.main)
    return {"value/explained_variance": (once * (1 - (target - value).var() / target.var()), once)}

"""Evaluation of a policy on held-out prompts: score, KL, length and end of its responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_cli.context import RunContext
from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.evaluation.intervals import Measurement, proportion
from rlhf_cli.models.policy import Policy
from rlhf_cli.rewards.rewards import CombinedReward
from rlhf_cli.rollout.response import Response
from rlhf_cli.stages.fixed_samples import FixedSamples, prompts_of_set
from rlhf_cli.stages.rollouts.worker import RolloutWorker, score_responses
from rlhf_cli.train.evaluation import HeldOutMetrics, from_measurements

ResponseKL = Callable[[Sequence[Response]], Tensor]
"""Responses of this rank -> [B], nats, log-ratio of policy to reference; every rank calls it."""


@dataclass(frozen=True)
class HeldOutResponses:
    """Measurements of a response to each held-out prompt: [n] each, in the order of the ranks.

    Attributes:
        score: of the response.
        kl: nats, of the whole response from the reference.
        response_length: tokens.
        eos_fraction: 1 where it ended by itself, else 0.
    """

    score: Tensor
    kl: Tensor
    response_length: Tensor
    eos_fraction: Tensor


@dataclass(frozen=True)
class HeldOutPrompts:
    """Held-out prompts, and what measures the responses to them.

    Attributes:
        worker: generates one response to each.
        rewards: score the responses.
        compute_kl: responses of this rank -> [B], nats, log-ratio of policy to reference.
        ranks: share the prompts.
    """

    worker: RolloutWorker
    rewards: CombinedReward
    compute_kl: ResponseKL
    ranks: Ranks

    def score(self, responses: Sequence[Response]) -> Tensor:
        """[B]: scores, which running statistics of the rewards ignore."""
        prompts = self.worker.prompts
        return score_responses(self.rewards, prompts, responses, observe=False).total

    def measure(self) -> HeldOutResponses:
        """Generate and measure the responses, with the same random numbers each time."""
        own = range(self.ranks.rank, len(self.worker.prompts), self.ranks.world_size)
        responses = self.ranks.call_together(lambda: self.worker.generate(own, own, step=0))
        found = (
            self.score(responses),
            self.compute_kl(responses),
            torch.tensor([float(len(one.token_ids)) for one in responses]),
            torch.tensor([float(one.finished) for one in responses]),
        )
        gathered = (self.ranks.all_gather_concat(values).double() for values in found)
        return HeldOutResponses(*gathered)

    def evaluate(self, kl_coef: float) -> HeldOutMetrics:
        """Means of `measure`, and `loss`: `kl_coef` times the KL minus the score."""
        found = self.measure()
        columns = found.kl.numpy(), found.score.numpy()
        loss = Measurement(
            "loss", columns, lambda kl, score: kl_coef * kl.mean(-1) - score.mean(-1)
        )
        return from_measurements([loss, *measurements(found)])


def fixed_samples(
    policy: Policy,
    ctx: RunContext,
    count: int,
    training: RolloutWorker,
    held_out: HeldOutPrompts | None,
) -> FixedSamples | None:
    """The prompts that the policy answers at each evaluation.

    Responses to held-out prompts are scored too. Others are not: a reward sees nothing of training
    prompts but their rollouts.

    Args:
        policy: answers.
        ctx: run folder and ranks.
        count: number of prompts.
        training: has the training prompts.
        held_out: the held-out prompts, or None.
    """
    if not count:
        return None
    worker = held_out.worker if held_out else training
    prompts = prompts_of_set(worker.prompt_text, worker.prompt_ids, policy, count)
    score = held_out.score if held_out else None
    return FixedSamples(ctx.out, policy, worker.tokenizer, prompts, ctx.ranks, score)


def measurements(found: HeldOutResponses) -> list[Measurement]:
    """Mean of each measurement, and the proportion of responses that ended by themselves."""
    by_metric = {name: values.numpy() for name, values in vars(found).items()}
    finished = by_metric.pop("eos_fraction")
    means = [Measurement(name, (values,)) for name, values in by_metric.items()]
    return [*means, proportion("eos_fraction", finished)]

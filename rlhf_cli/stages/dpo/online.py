"""Online DPO's `StepSource`: each step is one update on pairs that the policy has just written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.console import logger
from rlhf_cli.context import RunContext
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.loader import micro_batches
from rlhf_cli.losses.reduction import LossOutput
from rlhf_cli.rewards.rewards import CombinedReward, Scores
from rlhf_cli.rollout.response import Response
from rlhf_cli.stages.dpo.config import DPOConfig
from rlhf_cli.stages.dpo.pairs import RankedPair, rank_pairs
from rlhf_cli.stages.rollouts.held_out import ResponseKL
from rlhf_cli.stages.rollouts.logprob_check import ComputeLogprobs
from rlhf_cli.stages.rollouts.pipeline import Rollout
from rlhf_cli.stages.rollouts.rows import response_examples
from rlhf_cli.stages.rollouts.sample_log import LOGGED_RESPONSES, LoggedSample, logged_samples
from rlhf_cli.stages.rollouts.source import RolloutSource, Updates
from rlhf_cli.stages.rollouts.statistics import RolloutStatistics, time_metrics
from rlhf_cli.stages.rollouts.worker import RolloutWorker, score_responses
from rlhf_cli.train.row_loss import RowLoss, RowValues


class OnlineSource(RolloutSource):
    """Scores and pairs responses, and yields the update on them.

    Args:
        cfg: the whole configuration.
        worker: generates responses.
        rewards: score whole responses.
        compute_kl: of responses that are logged.
        compute_logprobs: the policy's, with which those of a server are compared.
        ctx: ranks share the prompts of a step.
        max_tokens: tokens of a micro-batch.
    """

    def __init__(
        self,
        cfg: DPOConfig,
        worker: RolloutWorker,
        rewards: CombinedReward,
        compute_kl: ResponseKL,
        compute_logprobs: ComputeLogprobs,
        ctx: RunContext,
        max_tokens: int,
    ) -> None:
        super().__init__(cfg, worker, compute_logprobs, ctx)
        self.cfg, self.rewards, self.compute_kl = cfg, rewards, compute_kl
        self.max_tokens = max_tokens
        self.statistics = RolloutStatistics(ctx.ranks)
        self.pairs: list[RankedPair] = []
        """Pairs of the step, without ties, as the examples of its rows."""

    def location(self, rows: TokenBatch) -> str:
        """`file:line` of the prompt of a row."""
        pair = self.pairs[rows.example_ids[0]]
        return self.worker.prompts.location(pair.chosen.prompt_index)

    def updates_of(self, rollout: Rollout) -> Updates:
        """Score and pair the responses, and yield the update; none where all pairs are ties."""
        responses = rollout.responses
        began = time.monotonic()
        scores = score_responses(self.rewards, self.worker.prompts, responses)
        scored = time.monotonic()
        unfinished = [float(not one.finished) for one in responses]
        penalized = scores.total - self.cfg.missing_eos_penalty * torch.tensor(unfinished)
        ranked = rank_pairs(responses, penalized, self.cfg.samples_per_prompt)
        self.pairs = [pair for pair in ranked if not pair.is_tie]
        self._measure(responses, penalized, scores, ranked)
        make = partial(self._samples, ranked, responses, penalized)
        self.log_samples(rollout.step, make)
        examples = response_examples([(pair.chosen, pair.rejected) for pair in self.pairs])
        if self.ctx.ranks.any(bool(self.pairs)):
            yield micro_batches(examples, range(len(examples)), self.max_tokens)
        else:
            logger.info(f"step {rollout.step}: no update, the responses to each prompt are ties")
        update = time.monotonic() - scored
        self.metrics |= time_metrics(self.ctx.ranks, score=scored - began, update=update)
        return responses

    def _measure(
        self,
        responses: Sequence[Response],
        penalized: Tensor,
        scores: Scores,
        ranked: Sequence[RankedPair],
    ) -> None:
        rows, prompts = float(len(responses)), float(len(ranked))
        terms = {f"score/{name}": (of.sum(), rows) for name, of in scores.by_term.items()}
        margins = torch.tensor([pair.margin for pair in ranked])
        ties = torch.tensor([float(pair.is_tie) for pair in ranked])
        self.metrics = {
            **self.statistics.measure(responses, penalized),
            **terms,
            "objective/scores": (penalized.sum(), rows),
            "objective/score_margin": (margins.sum(), prompts),
            "objective/ties": (ties.sum(), prompts),
        }

    def _samples(
        self, ranked: Sequence[RankedPair], responses: Sequence[Response], scores: Tensor
    ) -> list[LoggedSample]:
        """The best and the worst response to the first prompts."""
        shown = [
            one for pair in ranked[: LOGGED_RESPONSES // 2] for one in (pair.chosen, pair.rejected)
        ]
        place = {id(response): k for k, response in enumerate(responses)}
        chosen = scores[[place[id(one)] for one in shown]]
        return logged_samples(self.worker, shown, chosen, self.compute_kl(shown))

    def state_dict(self) -> dict[str, Any]:
        """State as JSON values: prompt order, reward statistics, the first rollouts' means."""
        return {
            **super().state_dict(),
            "rewards": self.rewards.state_dict(),
            "statistics": self.statistics.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            CheckpointError: the data or the batch size are not those of the checkpoint.
        """
        super().load_state_dict(state)
        self.rewards.load_state_dict(state["rewards"])
        self.statistics.load_state_dict(state["statistics"])


def with_kl(loss: RowLoss) -> RowLoss:
    """Add the KL of the pairs' responses to the metrics of a loss with a reference.

    It is the mean log-ratio of policy to reference, summed over each response. The responses are
    those that were compared: with two to a prompt and no ties, all of them.
    """

    def loss_fn(values: RowValues) -> LossOutput:
        output = loss.loss_fn(values)
        ratio = (values["logp"] - values["reference"]).detach()
        kl = {"objective/kl": (ratio.sum(), float(len(ratio)))}
        return replace(output, metrics={**output.metrics, **kl})

    return replace(loss, loss_fn=loss_fn)

"""Online DPO's `StepSource`: each step is one update on pairs that the policy has just written."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.console import logger
from rlhf_cli.context import RunContext
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.loader import micro_batches
from rlhf_cli.losses.reduction import LossOutput, Metrics
from rlhf_cli.rewards.rewards import CombinedReward, Scores
from rlhf_cli.rollout.response import Response
from rlhf_cli.stages.dpo.config import DPOConfig
from rlhf_cli.stages.dpo.pairs import RankedPair, rank_pairs
from rlhf_cli.stages.rollouts.held_out import ResponseKL
from rlhf_cli.stages.rollouts.logprob_check import LogprobCheck
from rlhf_cli.stages.rollouts.pipeline import Rollout, RolloutPipeline
from rlhf_cli.stages.rollouts.rows import response_examples
from rlhf_cli.stages.rollouts.sample_log import (
    LOGGED_RESPONSES,
    SampleLog,
    is_logged,
    logged_samples,
)
from rlhf_cli.stages.rollouts.statistics import RolloutStatistics, staleness_metrics, time_metrics
from rlhf_cli.stages.rollouts.worker import RolloutWorker, score_responses
from rlhf_cli.train.row_loss import RowLoss, RowValues


class OnlineSource:
    """A `StepSource` that generates, scores and pairs responses, and yields the update on them.

    Args:
        cfg: the whole configuration.
        worker: generates responses.
        rewards: score whole responses.
        compute_kl: of responses that are logged.
        ctx: ranks share the prompts of a step.
        max_tokens: tokens of a micro-batch.
        check: compares a server's log-probs with the policy's.
    """

    def __init__(
        self,
        cfg: DPOConfig,
        worker: RolloutWorker,
        rewards: CombinedReward,
        compute_kl: ResponseKL,
        ctx: RunContext,
        max_tokens: int,
        check: LogprobCheck | None = None,
    ) -> None:
        self.cfg, self.worker, self.rewards, self.compute_kl = cfg, worker, rewards, compute_kl
        self.ctx, self.max_tokens = ctx, max_tokens
        self.pipeline = RolloutPipeline(worker, cfg, ctx.ranks, lag=cfg.rollout.lag)
        self.check = check
        self.statistics = RolloutStatistics(ctx.ranks)
        self.samples = SampleLog(ctx.out, written=ctx.ranks.is_main, full=cfg.log.samples == "full")
        self.pairs: list[RankedPair] = []
        """Pairs of the step, without ties, as the examples of its rows."""
        self.metrics: Metrics = {}

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, from its first."""
        return self.pipeline.total_steps

    def next_step(self) -> Iterator[list[TokenBatch]] | None:
        """The update on the next rollout, or None at the end of the run."""
        began = time.monotonic()
        rollout = self.pipeline.next_rollout()
        return None if rollout is None else self._train_on(rollout, time.monotonic() - began)

    def take_metrics(self) -> Metrics:
        """Return the metrics of the last step, and clear them."""
        found, self.metrics = self.metrics, {}
        return found

    def location(self, rows: TokenBatch) -> str:
        """`file:line` of the prompt of a row."""
        pair = self.pairs[rows.example_ids[0]]
        return self.worker.prompts.location(pair.chosen.prompt_index)

    def _train_on(self, rollout: Rollout, waited: float) -> Iterator[list[TokenBatch]]:
        """Score and pair the responses, and yield the update; none where all pairs are ties."""
        if self.check is not None:
            self.check(rollout)
        responses = rollout.responses
        began = time.monotonic()
        scores = score_responses(self.rewards, self.worker.prompts, responses)
        scored = time.monotonic()
        unfinished = [float(not one.finished) for one in responses]
        penalized = scores.total - self.cfg.missing_eos_penalty * torch.tensor(unfinished)
        ranked = rank_pairs(responses, penalized, self.cfg.samples_per_prompt)
        self.pairs = [pair for pair in ranked if not pair.is_tie]
        self._measure(responses, penalized, scores, ranked)
        self._show(rollout.step, ranked, responses, penalized)
        examples = response_examples([(pair.chosen, pair.rejected) for pair in self.pairs])
        if self.ctx.ranks.any(bool(self.pairs)):
            yield micro_batches(examples, range(len(examples)), self.max_tokens)
        else:
            logger.info(f"step {rollout.step}: no update, the responses to each prompt are ties")
        self.pipeline.finish()
        if self.cfg.rollout.is_used:
            self.metrics |= staleness_metrics(responses, rollout.step)
            self.metrics |= time_metrics(self.ctx.ranks, wait=waited)
        update = time.monotonic() - scored
        self.metrics |= time_metrics(
            self.ctx.ranks, rollout=rollout.seconds, score=scored - began, update=update
        )

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

    def _show(
        self,
        step: int,
        ranked: Sequence[RankedPair],
        responses: Sequence[Response],
        scores: Tensor,
    ) -> None:
        """Log the best and the worst response to the first prompts, where a log is due."""
        if step == 1:
            self.samples.truncate(0)  # samples of a run that stopped before its first save
        if not is_logged(step, self.cfg.sample_steps, self.total_steps):
            return
        shown = [
            one for pair in ranked[: LOGGED_RESPONSES // 2] for one in (pair.chosen, pair.rejected)
        ]
        place = {id(response): k for k, response in enumerate(responses)}
        chosen = scores[[place[id(one)] for one in shown]]
        self.samples.add(step, logged_samples(self.worker, shown, chosen, self.compute_kl(shown)))

    def state_dict(self) -> dict[str, Any]:
        """State as JSON values: prompt order, reward statistics, the first rollouts' means."""
        return {
            **self.pipeline.state_dict(),
            "rewards": self.rewards.state_dict(),
            "statistics": self.statistics.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            CheckpointError: the data or the batch size are not those of the checkpoint.
        """
        self.pipeline.load_state_dict(state)
        self.rewards.load_state_dict(state["rewards"])
        self.statistics.load_state_dict(state["statistics"])
        self.samples.truncate(self.pipeline.step)


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

"""PPO's `StepSource`: each step is a rollout of the current policy and its updates."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from rlhf_cli.context import RunContext
from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.errors import InferenceServerError, RankFailed
from rlhf_cli.rewards.rewards import CombinedReward, Scores
from rlhf_cli.rollout.response import Response
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.ppo.dynamic_sampling import DynamicSampling
from rlhf_cli.stages.ppo.experience import RolloutBatch
from rlhf_cli.stages.ppo.updates import PPOUpdater
from rlhf_cli.stages.rollouts.pipeline import Rollout
from rlhf_cli.stages.rollouts.sample_log import LOGGED_RESPONSES, LoggedSample, logged_samples
from rlhf_cli.stages.rollouts.source import RolloutSource, Updates
from rlhf_cli.stages.rollouts.statistics import time_metrics
from rlhf_cli.stages.rollouts.worker import RolloutWorker, score_responses


class PPOSource(RolloutSource):
    """Scores responses, and yields the PPO updates on them.

    Args:
        cfg: the whole configuration.
        worker: generates responses.
        rewards: score whole responses.
        updates: makes updates of them.
        ctx: ranks share the prompts of a step.
    """

    def __init__(
        self,
        cfg: PPOConfig,
        worker: RolloutWorker,
        rewards: CombinedReward,
        updates: PPOUpdater,
        ctx: RunContext,
    ) -> None:
        super().__init__(cfg, worker, updates.experience_maker.compute_logprobs, ctx)
        self.cfg, self.rewards, self.updates = cfg, rewards, updates
        self.resample: DynamicSampling | None = None
        if cfg.dynamic_sampling:
            total = self.total_steps
            self.resample = DynamicSampling(cfg, worker, rewards, ctx.ranks, total)

    def updates_of(self, rollout: Rollout) -> Updates:
        """Score responses, compute their advantages, and yield the updates."""
        began = time.monotonic()
        responses, scores = self._score(rollout)
        scored = time.monotonic()
        batch = self.updates.start_rollout(responses, scores.total, rollout.step, scores.by_term)
        self.log_samples(rollout.step, partial(self._samples, responses, scores.total, batch))
        yield from self.updates.minibatches(batch)
        rows = float(len(responses))
        terms = {f"score/{name}": (of.sum(), rows) for name, of in scores.by_term.items()}
        update = time.monotonic() - scored
        times = time_metrics(self.ctx.ranks, score=scored - began, update=update)
        self.metrics = {**self.metrics, **self.updates.metrics, **terms, **times}
        return responses

    def _score(self, rollout: Rollout) -> tuple[list[Response], Scores]:
        """The responses that are trained on, and their scores.

        Where a server fails, the state is that before, and a checkpoint of it is exact.
        """
        before = self._scoring_state()
        try:
            return self._score_and_replace(rollout)
        except (InferenceServerError, RankFailed):
            self._restore_scoring(before)
            raise

    def _score_and_replace(self, rollout: Rollout) -> tuple[list[Response], Scores]:
        responses = rollout.responses
        scores = score_responses(self.rewards, self.worker.prompts, responses)
        if self.resample is not None:
            responses, scores = self.resample(responses, scores, rollout.step)
            self.metrics |= self.resample.metrics
        if self.cfg.compat == "trl":
            pad = self.worker.tokenizer.pad_token_id
            responses = add_trailing_pads(responses, pad, self.ctx.ranks)
        return responses, scores

    def _samples(
        self, responses: Sequence[Response], scores: Tensor, batch: RolloutBatch
    ) -> list[LoggedSample]:
        samples = self.cfg.samples_per_prompt
        shown = slice(0, LOGGED_RESPONSES * samples, samples)  # one response per prompt
        return logged_samples(self.worker, responses[shown], scores[shown], batch.kl[shown])

    def state_dict(self) -> dict[str, Any]:
        """State as JSON values: prompt order, KL controller, reward statistics."""
        return {
            **super().state_dict(),
            "updates": self.updates.state_dict(),
            **self._scoring_state(),
        }

    def _scoring_state(self) -> dict[str, Any]:
        return {
            "rewards": self.rewards.state_dict(),
            "resample": None if self.resample is None else self.resample.state_dict(),
        }

    def _restore_scoring(self, state: dict[str, Any]) -> None:
        self.rewards.load_state_dict(state["rewards"])
        if self.resample is not None:
            self.resample.load_state_dict(state["resample"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            CheckpointError: the data or the batch size are not those of the checkpoint.
        """
        super().load_state_dict(state)
        self.updates.load_state_dict(state["updates"])
        self._restore_scoring(state)


def add_trailing_pads(responses: Sequence[Response], pad: int, ranks: Ranks) -> list[Response]:
    """For `compat=trl`, add a token after the end of each response except the longest.

    TRL's tensors are as wide as the longest response, which has no position after it.

    Args:
        responses: of this rank, possibly none.
        pad: the token.
        ranks: whose longest response counts.
    """
    lengths = [len(response.token_ids) for response in responses]
    width = max(ranks.all_gather_json(max(lengths, default=0)))
    return [
        replace(response, trailing_pad=pad if response.finished and length < width else None)
        for response, length in zip(responses, lengths, strict=True)
    ]

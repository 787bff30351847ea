"""What the step sources of all stages that generate responses have in common."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from rlhf_cli.context import RunContext
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.losses.reduction import Metrics
from rlhf_cli.rollout.response import Response
from rlhf_cli.stages.rollouts.config import RolloutSettings
from rlhf_cli.stages.rollouts.logprob_check import ComputeLogprobs, LogprobCheck
from rlhf_cli.stages.rollouts.pipeline import Rollout, RolloutPipeline
from rlhf_cli.stages.rollouts.sample_log import LoggedSample, SampleLog, is_logged
from rlhf_cli.stages.rollouts.statistics import staleness_metrics, time_metrics
from rlhf_cli.stages.rollouts.worker import RolloutWorker

Updates = Generator[list[TokenBatch], None, Sequence[Response]]
"""Yields the updates of a step; returns this rank's responses that they trained on."""


class RolloutSource(ABC):
    """A `StepSource` whose steps train on rollouts; a stage says what the updates are.

    Args:
        cfg: the order of the prompts, the servers, and how often samples are logged.
        worker: generates responses.
        compute_logprobs: the policy's, with which those of a server are compared.
        ctx: run folder, and the ranks that share the prompts of a step.

    Attributes:
        metrics: sums and counts of the last step over this rank's responses.
    """

    def __init__(
        self,
        cfg: RolloutSettings,
        worker: RolloutWorker,
        compute_logprobs: ComputeLogprobs,
        ctx: RunContext,
    ) -> None:
        self.worker, self.ctx = worker, ctx
        self.pipeline = RolloutPipeline(worker, cfg, ctx.ranks, lag=cfg.rollout.lag)
        self.samples = SampleLog(ctx.out, written=ctx.ranks.is_main, full=cfg.log.samples == "full")
        self.sample_steps = cfg.sample_steps
        self.check: LogprobCheck | None = None
        if cfg.rollout.is_used:
            self.check = LogprobCheck(
                cfg.rollout, cfg.sampling, worker, compute_logprobs, ctx.ranks
            )
        self.metrics: Metrics = {}

    @abstractmethod
    def updates_of(self, rollout: Rollout) -> Updates:
        """Yield the updates on a rollout, and fill `metrics`; every rank calls it."""

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, from its first; each has one rollout."""
        return self.pipeline.total_steps

    def next_step(self) -> Iterator[list[TokenBatch]] | None:
        """Updates on the next rollout, or None at the end of the run."""
        began = time.monotonic()
        rollout = self.pipeline.next_rollout()
        return None if rollout is None else self._train_on(rollout, time.monotonic() - began)

    def _train_on(self, rollout: Rollout, waited: float) -> Iterator[list[TokenBatch]]:
        if self.check is not None:
            self.check(rollout)
        responses = yield from self.updates_of(rollout)
        self.pipeline.finish()
        self.metrics |= time_metrics(self.ctx.ranks, rollout=rollout.seconds)
        if self.check is not None:
            self.metrics |= staleness_metrics(responses, rollout.step)
            self.metrics |= time_metrics(self.ctx.ranks, wait=waited)

    def take_metrics(self) -> Metrics:
        """Return the metrics of the last step, and clear them."""
        found, self.metrics = self.metrics, {}
        return found

    def log_samples(self, step: int, make: Callable[[], list[LoggedSample]]) -> None:
        """Log samples where a log is due; every rank makes them.

        Args:
            step: from 1.
            make: makes the samples.
        """
        if step == 1:
            self.samples.truncate(0)  # samples of a run that stopped before its first save
        if is_logged(step, self.sample_steps, self.total_steps):
            self.samples.add(step, make())

    def state_dict(self) -> dict[str, Any]:
        """State as JSON values: prompt order, and the rollouts ahead."""
        return self.pipeline.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            CheckpointError: the data or the batch size are not those of the checkpoint.
        """
        self.pipeline.load_state_dict(state)
        self.samples.truncate(self.pipeline.step)

"""PPO's `StepSource`: each step is a rollout of the current policy and its updates."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.context import RunContext
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.sampler import EpochSampler
from rlhf_cli.losses.reduction import Metrics
from rlhf_cli.rollout.response import Response
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.ppo.experience import RolloutBatch
from rlhf_cli.stages.ppo.rollout_worker import LOGGED_RESPONSES, RolloutWorker, SampleLog
from rlhf_cli.stages.ppo.updates import PPOUpdater


class RolloutSource:
    """A `StepSource` that generates and scores responses, and yields the PPO updates on them.

    Args:
        cfg: the whole configuration.
        worker: generates responses with the policy's current weights, and scores them.
        updates: makes updates of them.
        ctx: ranks share the prompts of a step.
    """

    def __init__(
        self, cfg: PPOConfig, worker: RolloutWorker, updates: PPOUpdater, ctx: RunContext
    ) -> None:
        self.cfg, self.worker, self.updates, self.ctx = cfg, worker, updates, ctx
        tokens = sum(map(len, worker.prompt_ids))
        self.order = EpochSampler(
            len(worker.prompts), tokens, cfg.data, cfg.train, cfg.seed, "prompts"
        )
        self.samples = SampleLog(ctx.out, written=ctx.ranks.is_main, full=cfg.log.samples == "full")
        self.metrics: Metrics = {}

    @property
    def total_steps(self) -> int:
        """Rollouts of the whole run, from its first."""
        return self.order.total_steps

    def next_step(self) -> Iterator[list[TokenBatch]] | None:
        """Updates of the next rollout, or None at the end of the run."""
        chosen = self.order.next_step()
        return None if chosen is None else self._roll_out(chosen.tolist())

    def take_metrics(self) -> Metrics:
        """Return the metrics of the last step, and clear them."""
        found, self.metrics = self.metrics, {}
        return found

    def _roll_out(self, chosen: Sequence[int]) -> Iterator[list[TokenBatch]]:
        """Generate and score responses, compute their advantages, and yield the updates."""
        ranks, step = self.ctx.ranks, self.order.step
        places = ranks.shard(len(chosen))
        began = time.monotonic()
        responses = self.worker.generate([chosen[place] for place in places], places, step)
        written = time.monotonic()
        scores = self.worker.score(responses)
        scored = time.monotonic()
        batch = self.updates.start_rollout(responses, scores.total, step)
        self._show(responses, scores.total, batch)
        yield from self.updates.minibatches(batch)
        rows = float(len(responses))
        terms = {f"score/{name}": (of.sum(), rows) for name, of in scores.by_term.items()}
        self.metrics = {**self.updates.metrics, **terms}
        self._note_times(
            rollout=written - began, score=scored - written, update=time.monotonic() - scored
        )

    def _show(self, responses: Sequence[Response], score: Tensor, batch: RolloutBatch) -> None:
        step, every = self.order.step, self.cfg.sample_steps
        if step == 1:
            self.samples.truncate(0)  # samples of a run that stopped before its first save
        if every and (step % every == 0 or step in (1, self.total_steps)):
            samples = self.cfg.samples_per_prompt
            shown = slice(0, LOGGED_RESPONSES * samples, samples)  # one response per prompt
            self.samples.add(
                step, self.worker.make_samples(responses[shown], score[shown], batch.kl[shown])
            )

    def _note_times(self, **seconds: float) -> None:
        once = int(self.ctx.ranks.is_main)
        for name, spent in seconds.items():
            self.metrics[f"time/{name}"] = (torch.tensor(spent * once, dtype=torch.float64), once)

    def state_dict(self) -> dict[str, Any]:
        """State as JSON values: prompt order, KL controller, reward statistics."""
        return {
            "order": self.order.state_dict(),
            "updates": self.updates.state_dict(),
            "rewards": self.worker.rewards.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            CheckpointError: the data or the batch size are not those of the checkpoint.
        """
        self.order.load_state_dict(state["order"])
        self.updates.load_state_dict(state["updates"])
        self.worker.rewards.load_state_dict(state["rewards"])
        self.samples.truncate(self.order.step)

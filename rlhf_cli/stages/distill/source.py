"""Distillation's `StepSource`: each step is an update on new responses of the student."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.loader import ExampleLoader
from rlhf_cli.data.sampler import EpochSampler
from rlhf_cli.models.policy import Policy
from rlhf_cli.rollout.response import Response
from rlhf_cli.stages.distill.config import DistillConfig
from rlhf_cli.stages.distill.data import DistillData
from rlhf_cli.stages.distill.loss import (
    RESPONSE,
    SAMPLED,
    SAMPLER_LOGPROBS,
    TEACHER_LOGPROBS,
    DistillLoss,
)
from rlhf_cli.stages.rollouts.minibatches import (
    RESPONSE_MASK,
    MicroBatch,
    make_minibatches,
    pad_table,
    response_masks,
)
from rlhf_cli.stages.rollouts.pipeline import Rollout
from rlhf_cli.stages.rollouts.rows import response_logprobs
from rlhf_cli.stages.rollouts.sample_log import LOGGED_RESPONSES, LoggedSample
from rlhf_cli.stages.rollouts.source import RolloutSource, Updates
from rlhf_cli.stages.rollouts.statistics import time_metrics
from rlhf_cli.stages.rollouts.worker import RolloutWorker
from rlhf_cli.stages.training import TrainingPlan


class TeacherServer(Protocol):
    """A teacher that is asked for log-probs over HTTP."""

    def logprobs(self, responses: Sequence[Response]) -> list[Tensor]:
        """Log-probs [T] of each response's tokens, nats; each rank asks for its own."""


def count_steps(cfg: DistillConfig, data: DistillData) -> int:
    """Steps of a run."""
    tokens = data.prompts[1]
    every = EpochSampler(len(tokens), sum(map(len, tokens)), cfg.data, cfg.train, cfg.seed)
    return every.total_steps


def load_completion_steps(
    cfg: DistillConfig, data: DistillData, plan: TrainingPlan, steps: int
) -> ExampleLoader | None:
    """The completions of each step, or None where the student answers all prompts.

    Their order has a seed of its own: that of the prompts would give the same rows in a step.
    """
    if data.completions is None:
        return None
    train = replace(cfg.train, batch_size=cfg.completions_per_step, max_steps=steps)
    tokens, ranks = plan.micro_batch_tokens, plan.ctx.ranks
    seed = (cfg.seed + 1) % 2**32
    return ExampleLoader(data.completions, cfg.data, train, seed, tokens, ranks)


class DistillSource(RolloutSource):
    """Yields one update for each rollout.

    Args:
        cfg: the whole configuration.
        worker: generates the student's responses.
        loss: of the updates; knows the divergence of each response afterwards.
        plan: tokens of a micro-batch, device and ranks.
        steps: of the run.
        completions: rows of each step that keep their completions, or None.
        server: scores the responses, where the teacher is a server.
    """

    def __init__(
        self,
        cfg: DistillConfig,
        worker: RolloutWorker,
        loss: DistillLoss,
        plan: TrainingPlan,
        steps: int,
        *,
        completions: ExampleLoader | None = None,
        server: TeacherServer | None = None,
    ) -> None:
        train = replace(cfg.train, batch_size=cfg.prompts_per_step, max_steps=steps)
        compute = partial(_student_logprobs, loss.student, plan)
        super().__init__(replace(cfg, train=train), worker, compute, plan.ctx)
        self.cfg, self.loss, self.plan = cfg, loss, plan
        self.completions, self.server = completions, server

    def updates_of(self, rollout: Rollout) -> Updates:
        """Ask a server for the teacher's log-probs, and yield the update."""
        responses = rollout.responses
        began = time.monotonic()
        scored = self._scored(responses)
        asked = time.monotonic()
        tokens, device = self.plan.micro_batch_tokens, self.loss.student.device
        by_server = self.cfg.rollout.is_used
        rows = sampled_rows(responses, tokens, device, scored, by_server=by_server)
        self.loss.of_response.clear()
        yield [*rows, *self._next_completions()]
        self.log_samples(rollout.step, partial(self._samples, responses))
        count = float(len(responses))
        self.metrics = {
            "tokens/response_length": (_total(len(one.token_ids) for one in responses), count),
            "tokens/eos_fraction": (_total(one.finished for one in responses), count),
        }
        times = {"update": time.monotonic() - asked}
        if self.server is not None:
            times["teacher"] = asked - began
        self.metrics |= time_metrics(self.ctx.ranks, **times)
        return responses

    def _scored(self, responses: Sequence[Response]) -> list[Tensor] | None:
        """The teacher's log-probs where it is a server; all ranks fail where one of them does."""
        if self.server is None:
            return None
        server = self.server
        return self.plan.ctx.ranks.call_together(lambda: server.logprobs(responses))

    def _next_completions(self) -> list[TokenBatch]:
        if self.completions is None:
            return []
        updates = self.completions.next_step()
        assert updates is not None  # there are as many steps as rollouts
        return updates[0]

    def _samples(self, responses: Sequence[Response]) -> list[LoggedSample]:
        samples = self.cfg.samples_per_prompt
        shown = range(0, min(len(responses), LOGGED_RESPONSES * samples), samples)
        return [self._sample(k, responses[k]) for k in shown]

    def _sample(self, k: int, response: Response) -> LoggedSample:
        return LoggedSample(
            self.worker.prompt_text(response.prompt_index),
            response.text,
            tokens=len(response.token_ids),
            weights_version=response.weights_version,
            divergence=self.loss.of_response.get(k, float("nan")),
        )

    def state_dict(self) -> dict[str, Any]:
        """State as JSON values: the order of prompts and completions."""
        rows = None if self.completions is None else self.completions.state_dict()
        return {**super().state_dict(), "completions": rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            CheckpointError: the data or the batch size are not those of the checkpoint.
        """
        super().load_state_dict(state)
        if self.completions is not None:
            self.completions.load_state_dict(state["completions"])


def _student_logprobs(
    student: Policy, plan: TrainingPlan, responses: Sequence[Response], temperature: float
) -> Tensor:
    return response_logprobs(
        responses,
        student,
        plan.ctx.ranks,
        max_tokens=plan.micro_batch_tokens,
        temperature=temperature,
    )


def _total(values: Any) -> Tensor:
    return torch.tensor(float(sum(values)))


def sampled_rows(
    responses: Sequence[Response],
    max_tokens: int,
    device: torch.device,
    teacher_logprobs: Sequence[Tensor] | None = None,
    *,
    by_server: bool = False,
) -> list[TokenBatch]:
    """Micro-batches of responses, with the columns that the loss reads.

    Args:
        responses: of this rank.
        max_tokens: tokens of a micro-batch.
        device: of the rows.
        teacher_logprobs: [T] of each response, of a teacher that is a server.
        by_server: add the log-probs of the server that generated them.
    """
    [micros] = make_minibatches(responses, 1, max_tokens, device)
    count = len(responses)
    tables = {SAMPLED: response_masks(responses)[RESPONSE_MASK]}
    if teacher_logprobs is not None:
        tables[TEACHER_LOGPROBS] = pad_table(dict(enumerate(teacher_logprobs)), count)
    if by_server:
        own = {k: torch.tensor(one.logprobs) for k, one in enumerate(responses)}
        tables[SAMPLER_LOGPROBS] = pad_table(own, count)
    return [_with_columns(micro, tables) for micro in micros]


def _with_columns(micro: MicroBatch, tables: Mapping[str, Tensor]) -> TokenBatch:
    numbers = torch.tensor([float(k) for k in micro.members])
    return micro.with_columns(tables).with_columns({RESPONSE: numbers})

"""Check that a server's log-probs are the policy's: on the first rollout, and every few steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlhf_cli.console import logger
from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.errors import ModelError
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.response import Response
from rlhf_cli.rollout.server.config import RolloutConfig
from rlhf_cli.stages.rollouts.pipeline import Rollout
from rlhf_cli.stages.rollouts.worker import RolloutWorker

CHECKED_RESPONSES = 8
"""Responses of each rank that are compared."""

GROWTH = 20.0
"""A difference that has grown by more than this factor, and is above `SMALL`, is reported."""

SMALL = 5e-3
"""Nats a token: what two engines in bf16 differ by at least."""

STALE = (
    "some of its weights may be stale. A vLLM on a CPU does not renew an output layer that is tied "
    "to the embeddings, unless rollout.start starts it; else see its log for failed updates"
)

ComputeLogprobs = Callable[[Sequence[Response], float], Tensor]
"""Responses and a temperature -> [B, T], nats, under the current policy; every rank calls it."""


class LogprobCheck:
    """Compares the log-probs of responses by the current weights with the policy's.

    Where all responses are by older weights, or of a truncated distribution, in which tokens have
    other probabilities than in the policy, some are generated for the check.

    Args:
        cfg: when to check, and the bound.
        sampling: the temperature of the log-probs.
        worker: generates responses.
        compute: the policy's log-probs.
        ranks: share the responses.
    """

    def __init__(
        self,
        cfg: RolloutConfig,
        sampling: SamplingConfig,
        worker: RolloutWorker,
        compute: ComputeLogprobs,
        ranks: Ranks,
    ) -> None:
        self.cfg, self.temperature = cfg, sampling.temperature
        whole = replace(sampling, top_k=0, top_p=1.0, min_p=0.0, min_new_tokens=0)
        self.is_truncated = whole != sampling
        self.worker = copy.copy(worker)
        if self.is_truncated:
            self.worker.engine = worker.engine.with_sampling(whole)
        self.compute, self.ranks = compute, ranks
        self.first: float | None = None
        """Difference at the first check, nats."""
        self._changed = False

    def __call__(self, rollout: Rollout) -> None:
        """Check before a step, if it is due; every rank calls it.

        It is due in the first step of a process and in the one after it, whose weights are the
        first that the server got from training; then every `rollout.check_steps`.

        Raises:
            ModelError: the difference is above `rollout.check_bound`; says the likely cause.
            InferenceServerError: the server failed.
        """
        every = self.cfg.check_steps
        if not every or (self._changed and rollout.step % every):
            return
        responses = self._current(rollout)
        difference = self._difference(responses, self.temperature)
        if not difference <= self.cfg.check_bound:  # NaN too
            raise ModelError(
                f"rollout.check_bound: step {rollout.step}: the server's log-probs differ from the "
                f"policy's by {difference:.3g} nats a token, more than "
                f"{self.cfg.check_bound:g}. {self._cause(responses)}"
            )
        if self.first is None:
            self.first = difference
            logger.info(
                f"rollout: the server's log-probs differ from the policy's by {difference:.2g} "
                f"nats a token (bound {self.cfg.check_bound:g})"
            )
            return
        self._changed = True
        if difference > max(GROWTH * self.first, SMALL):
            logger.info(
                f"warning: rollout: the server's log-probs differ from the policy's by "
                f"{difference:.2g} nats a token after step {rollout.step - 1}, and by "
                f"{self.first:.2g} at first: {STALE}"
            )

    def _current(self, rollout: Rollout) -> list[Response]:
        """Some responses of this rank by the current weights, of the whole distribution."""
        version = rollout.step - 1
        found = [one for one in rollout.responses if one.weights_version == version]
        missing = self.is_truncated or (not found and bool(rollout.responses))
        if not self.ranks.any(missing):
            return found[:CHECKED_RESPONSES]
        positions = self.ranks.shard(len(rollout.prompts))[:CHECKED_RESPONSES]
        prompts = [rollout.prompts[k] for k in positions]
        probe = self.ranks.call_together(
            lambda: self.worker.generate(prompts, positions, rollout.step)
        )
        return probe[:CHECKED_RESPONSES]

    def _difference(self, responses: Sequence[Response], temperature: float) -> float:
        """Mean absolute difference of a token's log-prob, nats, over all ranks."""
        own = self.compute(responses, temperature)
        total = sum(
            float((own[k, : len(one.logprobs)] - torch.tensor(one.logprobs)).abs().sum())
            for k, one in enumerate(responses)
        )
        count = sum(len(one.logprobs) for one in responses)
        found = self.ranks.sum_by_name({"total": total, "count": count})
        return found["total"] / max(found["count"], 1)

    def _cause(self, responses: Sequence[Response]) -> str:
        """The likely cause of a difference, and what to do."""
        if self.temperature != 1 and self._difference(responses, 1.0) <= self.cfg.check_bound:
            return (
                f"They are those at temperature 1, not {self.temperature:g}. Start vLLM with "
                "--logprobs-mode processed_logprobs"
            )
        if self.first is not None:
            return f"At first they differed by {self.first:.2g}: {STALE}"
        return (
            "The likely causes are another model or template than this run's, a quantized or "
            "lower-precision server (start vLLM with --dtype), or sampling options of its own "
            "(--generation-config vllm leaves them out)"
        )

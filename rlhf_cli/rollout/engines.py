"""What a stage needs from an engine that generates responses, and the engine in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from rlhf_cli.models.policy import Policy
from rlhf_cli.models.sharding import gathered
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.engine import DEFAULT_BATCH_SIZE, generate
from rlhf_cli.rollout.response import Response


class Engine(Protocol):
    """Generates responses with the weights of its last hand-over."""

    def hand_over(self, version: int) -> None:
        """Take over the policy's current weights; every rank calls it, none generates meanwhile.

        Args:
            version: number of steps that the weights have been trained for. Nothing happens where
                it is that of the last hand-over.
        """

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        prompt_numbers: Sequence[int],
        logprobs: bool = False,
    ) -> list[Response]:
        """Generate responses: all samples of the first prompt, then of the second, and so on.

        Args:
            prompts: token ids of this rank's prompts, possibly none.
            samples: responses per prompt.
            prompt_numbers: of each prompt, for its random numbers.
            logprobs: whether the log-probs of the sampler are needed.
        """

    def with_sampling(self, sampling: SamplingConfig) -> Engine:
        """The same engine with other sampling; only one of the two is closed."""

    def close(self) -> None:
        """Release what the engine holds outside this process."""


class LocalEngine:
    """The policy itself, by continuous batching in this process.

    Args:
        policy: generates with its current weights.
        tokenizer: the policy's.
        sampling: how tokens are sampled.
        slots: responses decoded at once.
    """

    def __init__(
        self,
        policy: Policy,
        tokenizer: Any,
        sampling: SamplingConfig,
        slots: int = DEFAULT_BATCH_SIZE,
    ) -> None:
        self.policy, self.tokenizer, self.sampling, self.slots = policy, tokenizer, sampling, slots
        self.version = 0

    def hand_over(self, version: int) -> None:
        """Note the version: the weights are the policy's own."""
        self.version = version

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        prompt_numbers: Sequence[int],
        logprobs: bool = False,
    ) -> list[Response]:
        """Generate responses; every rank calls it, since sharded weights are gathered."""
        with gathered(self.policy):
            responses = generate(
                self.policy,
                self.tokenizer,
                prompts,
                self.sampling,
                samples=samples,
                batch_size=self.slots,
                prompt_numbers=prompt_numbers,
                logprobs=logprobs,
            )
        for response in responses:
            response.weights_version = self.version
        return responses

    def with_sampling(self, sampling: SamplingConfig) -> LocalEngine:
        """The same model and weights with other sampling."""
        engine = LocalEngine(self.policy, self.tokenizer, sampling, self.slots)
        engine.version = self.version
        return engine

    def close(self) -> None:
        """Nothing is held outside this process."""

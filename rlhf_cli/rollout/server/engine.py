"""`ServerEngine`: generates responses by inference servers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlhf_cli.errors import DataError
from rlhf_cli.http_client import RetryableFailure, run_concurrently
from rlhf_cli.models.vocabulary import find_support, num_embeddings
from rlhf_cli.models.wrapper import ModelWrapper
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.response import Response
from rlhf_cli.rollout.server.connection import Connection
from rlhf_cli.rollout.server.hand_over import WeightSync
from rlhf_cli.rollout.server.requests import (
    GenerationRequest,
    check_answer,
    fill,
    response_seed,
)
from rlhf_cli.rollout.stopping import StopCriteria


class Stoppable(Protocol):
    """A server's process."""

    def stop(self) -> None:
        """End it."""


@dataclass(frozen=True)
class _Task:
    """A response to ask for, and the server that is asked."""

    response: Response
    request: GenerationRequest
    connection: Connection


class ServerEngine:
    """Generates responses by servers that have the policy's weights; threads may share it.

    All samples of a prompt come from one server, chosen by the prompt's number. Each response is a
    request of its own with its own seed, so that one that fails is asked for again alone, and a
    repeated rollout is the same where the server's arithmetic is.

    Args:
        connections: to the servers.
        names: what each server calls its model.
        model: the policy or its transformers model; has the vocabulary and the end tokens.
        tokenizer: has the end token, finds stop strings. Ids it has no token for are not sampled.
        sampling: how tokens are sampled.
        concurrency: requests at once in each process.
        sync: hands weights over; None where the servers keep their own.
        process: server that this run has started, or None; `close` ends it.
        logprobs: whether the log-probs of the samplers are used.
    """

    def __init__(
        self,
        connections: Sequence[Connection],
        names: Sequence[str],
        model: Any,
        tokenizer: Any,
        sampling: SamplingConfig,
        *,
        concurrency: int,
        sync: WeightSync | None = None,
        process: Stoppable | None = None,
        logprobs: bool = True,
    ) -> None:
        inner = model.model if isinstance(model, ModelWrapper) else model
        self.connections, self.names = list(connections), list(names)
        self.sampling, self.concurrency = sampling, concurrency
        self.sync, self.process, self.logprobs = sync, process, logprobs
        self._model, self._tokenizer = inner, tokenizer
        self._stop = StopCriteria(inner, tokenizer, sampling)
        self.rows = num_embeddings(inner)
        support = find_support(tokenizer, self.rows)
        self.excluded = [] if support is None else support.excluded

    def with_sampling(self, sampling: SamplingConfig) -> ServerEngine:
        """The same servers with other sampling; only one of the two is closed."""
        return ServerEngine(
            self.connections,
            self.names,
            self._model,
            self._tokenizer,
            sampling,
            concurrency=self.concurrency,
            sync=self.sync,
            process=self.process,
            logprobs=self.logprobs,
        )

    def hand_over(self, version: int) -> None:
        """Give the servers the policy's current weights; every rank calls it.

        Args:
            version: number of steps that the weights have been trained for. Nothing happens where
                it is that of the last hand-over.

        Raises:
            CheckpointError: the weights could not be written.
            InferenceServerError: a server did not take them within the deadline.
            RankFailed: another rank failed.
        """
        if self.sync is not None:
            self.sync.hand_over(version, self.connections)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        prompt_numbers: Sequence[int],
        logprobs: bool = True,
    ) -> list[Response]:
        """Generate responses: all samples of the first prompt, then of the second, and so on.

        Args:
            prompts: token ids of this rank's prompts, possibly none.
            samples: responses per prompt.
            prompt_numbers: of each prompt, >= 0, for its seed and its server.
            logprobs: no effect: an engine that uses log-probs has those of the servers wherever
                there is a distribution.

        Raises:
            DataError: a prompt has no tokens, or one that the model does not have.
            InferenceServerError: a server failed for longer than the deadline.
        """
        self._require_prompts(prompts, prompt_numbers)
        tasks = [
            self._task(index, sample, prompt, prompt_numbers[index], samples)
            for index, prompt in enumerate(prompts)
            for sample in range(samples)
        ]
        return run_concurrently(self._respond, tasks, self.concurrency)

    def _task(
        self, index: int, sample: int, prompt: Sequence[int], number: int, samples: int
    ) -> _Task:
        seed = response_seed(self.sampling.seed, number, sample)
        request = GenerationRequest(
            prompt,
            seed,
            self.sampling,
            self._stop.end_ids,
            self.excluded,
            self.logprobs,
        )
        response = Response(index * samples + sample, index, prompt)
        return _Task(response, request, self.connections[number % len(self.connections)])

    def _respond(self, task: _Task) -> Response:
        """Ask for one response until it is there."""
        connection = task.connection
        place = self.connections.index(connection)

        def ask() -> Response:
            name = self.names[place]
            return self._ask(task, *(self.sync.target(name) if self.sync else (name, 0)))

        def restore() -> None:
            if self.sync is not None:
                self.sync.restore(connection.api)

        return connection.call(ask, restore)

    def _ask(self, task: _Task, model: str, version: int) -> Response:
        answer = task.connection.api.generate(task.request, model)
        check_answer(answer, task.request, self.rows)
        finished = self._stop.is_met(answer.token_ids)
        if answer.finish_reason == "stop" and not finished:
            raise RetryableFailure("ended a response without an end token or a stop string")
        if self.sync is not None:
            version = self.sync.version_of(answer, version)
        response = task.response
        fill(response, answer)
        response.finished, response.weights_version = finished, version
        return response

    def _require_prompts(self, prompts: Sequence[Sequence[int]], numbers: Sequence[int]) -> None:
        for prompt, number in zip(prompts, numbers, strict=True):
            if not prompt:
                raise DataError(f"prompts: number {number} has no tokens; need one at least")
            if max(prompt) >= self.rows:
                raise DataError(
                    f"prompts: number {number} has the token id {max(prompt)}; the model has "
                    f"ids up to {self.rows - 1}"
                )

    def close(self) -> None:
        """Give the servers free, remove what was written for them, end those of this run."""
        if self.sync is not None:
            self.sync.close(self.connections)
        if self.process is not None:
            self.process.stop()

"""What a server is asked for, and the check of what it answers: token ids, never text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_cli.http_client import RetryableFailure
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.response import Response

NO_PROBABILITY = -9999.0
"""What servers write for minus infinity, which JSON has no number for."""

EXCLUDED_BIAS = -1e4
"""Added to the logit of a token that must not be sampled; its probability is 0 in fp32."""


@dataclass(frozen=True)
class GenerationRequest:
    """A request for one response.

    Attributes:
        prompt_ids: token ids of the prompt.
        seed: of the server's sampler.
        sampling: length, temperature, truncation, stop strings.
        end_ids: tokens that end a response.
        excluded: ids that are never sampled, because the tokenizer has no token for them.
        logprobs: whether log-probs are used.
    """

    prompt_ids: Sequence[int]
    seed: int
    sampling: SamplingConfig
    end_ids: Sequence[int]
    excluded: Sequence[int] = ()
    logprobs: bool = True

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probs are asked for; greedy decoding has no distribution."""
        return self.logprobs and self.sampling.temperature > 0


@dataclass(frozen=True)
class Answer:
    """A server's response to one request, as it came.

    Attributes:
        token_ids: ids of the response, including its end token where there is one.
        logprobs: nats, one per token; empty where none were asked for.
        finish_reason: `stop` for an end token or a stop string, `length` for the limit.
        version: the oldest weights that a token was sampled from, as the server names them.
    """

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    version: str


def response_seed(seed: int, prompt: int, sample: int) -> int:
    """Seed of one response, >= 0 and below 2^63, from the three numbers of `sampling.row_rng`."""
    mixed = np.random.SeedSequence((seed, prompt, sample)).generate_state(1, np.uint64)
    return int(mixed[0]) >> 1


def check_answer(answer: Answer, request: GenerationRequest, rows: int) -> None:
    """Check that an answer can be trained on.

    Args:
        answer: of a server.
        request: what it was asked.
        rows: number of ids that the model has.

    Raises:
        RetryableFailure: it is not what was asked for; says how.
    """
    problem = _problem(answer, request, rows)
    if problem:
        raise RetryableFailure(problem)


def _problem(answer: Answer, request: GenerationRequest, rows: int) -> str:
    tokens, sampling = answer.token_ids, request.sampling
    if not tokens:
        return "answers a response without tokens"
    if len(tokens) > sampling.max_new_tokens:
        return f"answers {len(tokens)} tokens; need {sampling.max_new_tokens} at most"
    beyond = [token for token in tokens if not 0 <= token < rows]
    if beyond:
        return (
            f"answers token id {beyond[0]}, which the model does not have; need ids from 0 to "
            f"{rows - 1}. It may serve another model"
        )
    excluded = {*tokens} & {*request.excluded}
    if excluded:
        return f"answers token id {min(excluded)}, which the tokenizer has no token for"
    early = [token for token in tokens[:-1] if token in request.end_ids]
    if early:
        return f"goes on after the end token {early[0]}; need it to end the response"
    if answer.finish_reason not in ("stop", "length"):
        return f"ended a response by {answer.finish_reason or 'nothing'}; need stop or length"
    if answer.finish_reason == "length" and len(tokens) < sampling.max_new_tokens:
        return (
            f"ended a response after {len(tokens)} tokens for its length; need "
            f"{sampling.max_new_tokens}. Its context (--max-model-len) may be too short"
        )
    return _logprob_problem(answer) if request.wants_logprobs else ""


def _logprob_problem(answer: Answer) -> str:
    logprobs = answer.logprobs
    if len(logprobs) != len(answer.token_ids):
        return f"answers {len(logprobs)} log-probs for {len(answer.token_ids)} tokens"
    for value in logprobs:
        # rounding can lift a certain token just above 0
        if not math.isfinite(value) or not NO_PROBABILITY < value <= 1e-3:
            return f"answers the log-prob {value:g}; need finite numbers, 0 at most"
    return ""


def fill(response: Response, answer: Answer) -> None:
    """Write a checked answer into a response."""
    response.token_ids[:] = answer.token_ids
    response.logprobs[:] = answer.logprobs

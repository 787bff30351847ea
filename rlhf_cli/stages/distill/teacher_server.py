"""A teacher that is a vLLM or SGLang server: it gives the log-probs of sampled tokens."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.config.references import unset_names
from rlhf_cli.console import logger
from rlhf_cli.errors import ConfigError, InferenceServerError
from rlhf_cli.http_client import (
    HTTPClient,
    HTTPFailure,
    RefusedRequest,
    run_concurrently,
)
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.vocabulary import num_embeddings, vocabulary_size
from rlhf_cli.rollout.response import Response
from rlhf_cli.rollout.server.api import ServerAPI, bearer, find_kind
from rlhf_cli.rollout.server.checks import PROBES
from rlhf_cli.rollout.server.config import ServerConfig
from rlhf_cli.rollout.server.connect import KINDS, refusal
from rlhf_cli.rollout.server.connection import Connection
from rlhf_cli.rollout.server.scoring import NoLogprobs, score_tokens
from rlhf_cli.stages.distill.config import DistillConfig

LIMITS = ServerConfig()
"""Timeout, deadline and number of requests at once."""


class ServerTeacher:
    """Asks a server for the log-probs of responses.

    Args:
        connection: to the server.
        model: name of its model.
        concurrency: requests at once.
    """

    def __init__(
        self, connection: Connection, model: str, concurrency: int = LIMITS.concurrency
    ) -> None:
        self.connection, self.model, self.concurrency = connection, model, concurrency

    def logprobs(self, responses: Sequence[Response]) -> list[Tensor]:
        """Log-probs [T] of each response's tokens, nats.

        Raises:
            InferenceServerError: the server failed for longer than its deadline.
        """
        return run_concurrently(self._score, list(responses), self.concurrency)

    def _score(self, response: Response) -> Tensor:
        ids = [*response.prompt_ids, *response.token_ids]
        start = len(response.prompt_ids)
        found = self.connection.call(
            lambda: score_tokens(self.connection.api, self.model, ids, start)
        )
        return torch.tensor(found)


def open_teacher(
    cfg: DistillConfig, tokenizer: Any, student: Policy, longest_prompt: int
) -> ServerTeacher:
    """Find the server of a run's teacher, and check that it can score the student's responses.

    Args:
        cfg: `teacher` is its address.
        tokenizer: the student's.
        student: generates the responses.
        longest_prompt: its tokens.

    Raises:
        ConfigError: it has another vocabulary, too few positions, or gives no log-probs.
        InferenceServerError: it cannot be reached, asks for another key, or is neither.
    """
    for name in unset_names(cfg.teacher_token):
        raise ConfigError(
            f"teacher_token: the environment variable {name} is not set. Try export {name}=..."
        )
    address = cfg.teacher.rstrip("/")
    client = HTTPClient(address, "teacher", LIMITS.timeout, bearer(cfg.teacher_token))
    try:
        api = KINDS[find_kind(client)](client)
        rows = min(num_embeddings(student.model), vocabulary_size(tokenizer))
        longest = longest_prompt + cfg.sampling.max_new_tokens
        model = _checked(api, tokenizer, rows, longest)
    except RefusedRequest as error:
        raise InferenceServerError(refusal(client.origin, error, "teacher_token")) from error
    except HTTPFailure as error:
        raise InferenceServerError(
            f"{client.origin}: {error}. Start the teacher's server first"
        ) from error
    logger.info(f"teacher: {model or 'the model'} at {client.url}, log-probs of sampled tokens")
    slots = threading.BoundedSemaphore(LIMITS.concurrency)
    return ServerTeacher(Connection(api, LIMITS.deadline, slots), model)


def _checked(api: ServerAPI, tokenizer: Any, rows: int, longest: int) -> str:
    """Name of the model of a server that gives log-probs of the student's tokens."""
    facts = api.facts(syncs=False, adapters=False)
    if not facts.models:
        raise ConfigError(f"{api.origin}: serves no model; need the teacher's")
    model = facts.models[0]
    if 0 < facts.context_length <= longest:  # vLLM generates a token more
        raise ConfigError(
            f"{api.origin}: takes {facts.context_length} tokens; need {longest + 1} for prompt and "
            f"response. Start it with --max-model-len {longest + 1}, or give a shorter "
            "max_new_tokens or max_length"
        )
    for text in PROBES:
        own = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        found = api.tokenize(text, model)
        if found is not None and found != own:
            raise ConfigError(
                f"{api.origin}: has another vocabulary ({text[:20]!r} is {found[:6]}... there and "
                f"{own[:6]}... here); need a teacher with the student's tokenizer"
            )
    _require_logprobs(api, model, rows)
    return model


def _require_logprobs(api: ServerAPI, model: str, rows: int) -> None:
    """Ask for the log-prob of the last id, which the teacher must have."""
    try:
        score_tokens(api, model, [rows - 1, rows - 1], 1)
    except RefusedRequest as error:
        if error.status not in (400, 422):
            raise
        raise ConfigError(
            f"{api.origin}: does not score token id {rows - 1} ({error}); need a teacher with the "
            f"student's {rows} ids that gives log-probs of a prompt"
        ) from error
    except NoLogprobs as error:
        raise ConfigError(
            f"{api.origin}: {error}; need those of the student's tokens. Try a server that gives "
            "them (of vLLM, without --max-logprobs 0), or a model as teacher"
        ) from error

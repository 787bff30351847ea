"""Checks of a server before its first response: vocabulary, positions, endpoints, log-probs."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from rlhf_cli.console import logger
from rlhf_cli.errors import ConfigError, InferenceServerError
from rlhf_cli.http_client import HTTPClient, HTTPFailure, RefusedRequest
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.server.api import HEALTH_TIMEOUT, ServerAPI, ServerFacts
from rlhf_cli.rollout.server.config import is_loopback
from rlhf_cli.rollout.server.connect import refusal
from rlhf_cli.rollout.server.owner import was_handed_over
from rlhf_cli.rollout.server.requests import GenerationRequest

DOCS = "See `rlhf docs rollout_servers`"

PROBES = (
    "The quick brown fox, 3.14159 + 2 = ?\n\tdef f(x): return x",
    "  Übergrößenträger — 你好, мир! \U0001f600",
)
"""Texts whose token ids tell tokenizers apart."""


@dataclass(frozen=True)
class ServerNeeds:
    """What a run needs of a server.

    Attributes:
        tokenizer: the policy's.
        rows: ids that the policy has.
        context_length: tokens of the longest prompt and response together.
        logprobs: whether log-probs are needed.
        syncs: whether it gets new weights.
        adapters: whether these are adapters.
        model: path and folder of the model that it must have been started with, where it keeps its
            weights.
    """

    tokenizer: Any
    rows: int
    context_length: int
    logprobs: bool = True
    syncs: bool = True
    adapters: bool = False
    model: Sequence[str] = ()


def check_server(api: ServerAPI, needs: ServerNeeds) -> str:
    """Check that a server can do what a run needs.

    Args:
        api: of the server.
        needs: of the run.

    Returns:
        Name of its model.

    Raises:
        ConfigError: it has another vocabulary, too few positions, or was started without an option.
        InferenceServerError: it does not answer.
    """
    with _explaining(api):
        facts = api.facts(syncs=needs.syncs, adapters=needs.adapters)
        _require_endpoints(api, facts)
        if not facts.models:
            raise ConfigError(f"{api.origin}: serves no model; need the policy's. {DOCS}")
        name = facts.models[0]
        if needs.syncs:
            api.resume()  # a run that was killed in a hand-over leaves its server frozen
        if needs.model:
            _require_model(api, facts, needs.model)
        _require_context(api, facts, needs)
        _require_tokenizer(api, name, needs.tokenizer)
        _require_vocabulary(api, name, needs)
        problem = api.logprob_problem(name) if needs.logprobs else ""
    if problem:
        raise ConfigError(f"{api.origin}: {problem}. {DOCS}")
    if needs.syncs:
        for warning in open_to_others(api):
            logger.info(f"warning: {warning}")
    logger.info(f"rollout: {facts.software} at {api.client.url} generates the responses")
    return api.base_name(name)


@contextmanager
def _explaining(api: ServerAPI) -> Iterator[None]:
    """Convert a failed request to an error with the server's address."""
    try:
        yield
    except RefusedRequest as error:
        raise InferenceServerError(refusal(api.origin, error)) from error
    except HTTPFailure as error:
        raise InferenceServerError(f"{api.origin}: {error}") from error


def _require_endpoints(api: ServerAPI, facts: ServerFacts) -> None:
    if facts.missing:
        raise ConfigError(
            f"{api.origin}: {facts.software} has not got {', '.join(facts.missing)}; need it. "
            f"Start the server with what opens it, or a newer version. {DOCS}"
        )


def _require_model(api: ServerAPI, facts: ServerFacts, model: Sequence[str]) -> None:
    """Require a server that was started with a model, or serves it by its path as the name."""
    found = facts.root or facts.models[0]
    if not any(_is_same(one, path) for one in (found, facts.models[0]) for path in model):
        raise ConfigError(
            f"{api.origin}: serves {found}; need model.path={model[0]}. Start it with that model, "
            f"or under that name where it is the same (--served-model-name {model[0]})"
        )
    try:
        version = api.weight_version()
    except RefusedRequest:  # it lets nobody change its weights
        return
    if was_handed_over(version):
        raise ConfigError(
            f"{api.origin}: has weights that a training run handed over ({version}), not those of "
            f"{model[0]}; need a server started with them"
        )


def _is_same(served: str, path: str) -> bool:
    """Whether two paths are one folder, or one hub id."""
    try:
        return served == path or os.path.samefile(served, path)
    except OSError:
        return False


def _require_context(api: ServerAPI, facts: ServerFacts, needs: ServerNeeds) -> None:
    if 0 < facts.context_length < needs.context_length:
        raise ConfigError(
            f"{api.origin}: takes {facts.context_length} tokens of prompt and response; need "
            f"{needs.context_length}. Start it with --max-model-len {needs.context_length}, or "
            "give a shorter max_new_tokens or max_length"
        )


def _require_tokenizer(api: ServerAPI, name: str, tokenizer: Any) -> None:
    for text in PROBES:
        own = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        found = api.tokenize(text, name)
        if found is not None and found != own:
            raise ConfigError(
                f"{api.origin}: has another tokenizer ({text[:20]!r} is {found[:6]}... there and "
                f"{own[:6]}... here); need the policy's. Start it with the model of model.path"
            )


def _require_vocabulary(api: ServerAPI, name: str, needs: ServerNeeds) -> None:
    """Ask for a token after the last id, which the server must have, and one more, which it not."""
    last = needs.rows - 1
    if not _takes(api, name, last):
        raise ConfigError(
            f"{api.origin}: has no token id {last}; need the policy's {needs.rows} ids. Start it "
            "with the model of model.path"
        )
    if _takes(api, name, needs.rows):
        raise ConfigError(
            f"{api.origin}: has the token id {needs.rows}; need the policy's {needs.rows} ids, "
            "from 0. Start it with the model of model.path"
        )


def _takes(api: ServerAPI, name: str, token: int) -> bool:
    """Whether the server's model has a token."""
    one = SamplingConfig(max_new_tokens=1, temperature=0)
    try:
        api.generate(GenerationRequest([token], 0, one, []), api.base_name(name))
    except RefusedRequest as error:
        if error.status in (400, 422):
            return False
        raise
    return True


def open_to_others(api: ServerAPI, own: Callable[[], list[str]] | None = None) -> list[str]:
    """Ways in which others may change the server's weights, one line each.

    Args:
        api: of the server.
        own: addresses of this machine; found out by default.
    """
    parts = urlsplit(api.client.url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if is_loopback(host):
        reachable = [
            a for a in (own or own_addresses)() if not is_loopback(a) and _listens(a, port)
        ]
        return [
            f"{api.origin}: listens on {address} too, where others can change its weights. Start "
            "it with --host 127.0.0.1"
            for address in reachable[:1]
        ]
    bare = HTTPClient(api.client.url, api.client.key, HEALTH_TIMEOUT)
    try:
        type(api)(bare).weight_version()  # type: ignore[call-arg]
    except HTTPFailure:
        return []
    return [
        f"{api.origin}: changes its weights for everyone who reaches it, without a key. Let a "
        "firewall allow this machine alone"
    ]


def own_addresses() -> list[str]:
    """Addresses of this machine in networks, as far as it can tell; nothing is sent."""
    found = set()
    with suppress(OSError):
        found |= {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        try:
            route.connect(("192.0.2.1", 9))  # a documentation address (RFC 5737)
            found.add(route.getsockname()[0])
        except OSError:
            pass
    return sorted(found)


def _listens(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=1):
            return True
    except OSError:
        return False

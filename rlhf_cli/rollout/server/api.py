"""What is asked of an inference server, whichever it is; `vllm` and `sglang` say it their way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rlhf_cli.http_client import HTTPClient, RefusedRequest, RetryableFailure
from rlhf_cli.rollout.server.requests import Answer, GenerationRequest

HEALTH_TIMEOUT = 10.0
"""Seconds within which a healthy server says so."""

SYNC_TIMEOUT = 600.0
"""Seconds, at least, within which a server must have loaded new weights."""


@dataclass(frozen=True)
class ServerFacts:
    """What a server says about itself.

    Attributes:
        software: its name and version.
        models: names that it serves.
        context_length: tokens of the longest prompt and response together; 0 if it does not say.
        missing: endpoints that it lacks, each with the option that opens it.
        root: folder or hub id that it was started with; empty if it does not say.
    """

    software: str
    models: Sequence[str]
    context_length: int
    missing: Sequence[str] = ()
    root: str = ""


class ServerAPI(Protocol):
    """One inference server.

    All methods raise `RetryableFailure` and `RefusedRequest` as `HTTPClient` does. Threads may
    share an object.

    Attributes:
        client: sends its requests.
        origin: config key and address, for messages.
    """

    client: HTTPClient
    origin: str

    def require_healthy(self) -> None:
        """Ask whether it can serve requests; raises a failure where not."""

    def facts(self, *, syncs: bool, adapters: bool) -> ServerFacts:
        """Ask what it is.

        Args:
            syncs: whether it will get new weights.
            adapters: whether it will get adapters.
        """

    def generate(self, request: GenerationRequest, model: str) -> Answer:
        """Ask for one response.

        Args:
            request: prompt and sampling.
            model: name of the model, or of the adapter on it.
        """

    def tokenize(self, text: str, model: str) -> list[int] | None:
        """Token ids of a text without special tokens; None where it has no such endpoint."""

    def base_name(self, model: str) -> str:
        """What `generate` takes for the server's own model."""

    def logprob_problem(self, model: str) -> str:
        """Say why its log-probs are not those that it samples from; empty where they are."""

    def weight_version(self) -> str:
        """Name of its weights."""

    def set_weight_version(self, version: str) -> None:
        """Name its weights."""

    def load_weights(self, folder: Path, version: str) -> None:
        """Load whole weights in place of its own; requests in flight go on with the new ones."""

    def resume(self) -> None:
        """Let requests go on that `load_weights` has frozen, also where it broke off."""

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load an adapter under a new name."""

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter."""


def bearer(token: str) -> dict[str, str]:
    """Headers with a key; none without one."""
    return {"Authorization": f"Bearer {token}"} if token else {}


def has_endpoint(client: HTTPClient, path: str, body: bytes | None = None) -> bool:
    """Whether a server has an endpoint that takes a POST, and lets this client use it.

    Args:
        client: whose key the server takes.
        path: of the endpoint.
        body: POSTed, and refused as incomplete; without one the endpoint is asked by a GET.

    Raises:
        RetryableFailure: the server cannot be reached.
    """
    try:
        client.request(path, body, timeout=HEALTH_TIMEOUT)
    except RefusedRequest as error:
        return error.status not in (403, 404)  # 405: it takes no GET; 400, 422: it reads bodies
    except RetryableFailure as error:
        if error.status < 500:
            raise
    return True


def find_kind(client: HTTPClient) -> str:
    """Find out which software a server is: `vllm` or `sglang`.

    Raises:
        HTTPFailure: it cannot be reached, or is neither.
    """
    for path, kind in (("/version", "vllm"), ("/get_model_info", "sglang")):
        try:
            found = client.request_json(path, timeout=HEALTH_TIMEOUT)
        except RefusedRequest as error:
            if error.status not in (404, 405):
                raise
        else:
            if isinstance(found, dict):
                return kind
    raise RefusedRequest("is neither vLLM nor SGLang; need one of them", 404)


def field_of(value: Any, *names: str | int) -> Any:
    """Value at a path within a JSON value.

    Raises:
        RetryableFailure: there is none; the answer is not what the server's documents say.
    """
    found = value
    for name in names:
        try:
            found = found[name]
        except (LookupError, TypeError):
            where = ".".join(map(str, names))
            raise RetryableFailure(f"answers without {where}; need it in the JSON object") from None
    return found


def whole_numbers(value: Any, name: str) -> list[int]:
    """A list of ids.

    Raises:
        RetryableFailure: it is none.
    """
    if not isinstance(value, list) or not all(type(one) is int for one in value):
        raise RetryableFailure(f"answers {name} that are no list of whole numbers")
    return value


def real_numbers(value: Any, name: str) -> list[float]:
    """A list of numbers, None read as not a number.

    Raises:
        RetryableFailure: it is none.
    """
    try:
        return [float("nan") if one is None else float(one) for one in value]
    except (TypeError, ValueError):
        raise RetryableFailure(f"answers {name} that are no list of numbers") from None

"""Connect to the servers of a configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlhf_cli.config.references import unset_names
from rlhf_cli.errors import ConfigError, InferenceServerError
from rlhf_cli.http_client import HTTPClient, RefusedRequest, RetryableFailure
from rlhf_cli.rollout.server.api import ServerAPI, bearer, find_kind
from rlhf_cli.rollout.server.config import ServerConfig
from rlhf_cli.rollout.server.sglang import SGLangServer
from rlhf_cli.rollout.server.vllm import VLLMServer

KINDS: dict[str, Callable[[HTTPClient], ServerAPI]] = {
    "vllm": VLLMServer,
    "sglang": SGLangServer,
}


def connect(
    cfg: ServerConfig, addresses: Sequence[str] | None = None, token: str | None = None
) -> list[ServerAPI]:
    """Find out which software each server is.

    Args:
        cfg: addresses, token and timeout.
        addresses: in place of those of `cfg`.
        token: in place of that of `cfg`.

    Raises:
        ConfigError: the token refers to an environment variable that is not set.
        InferenceServerError: a server cannot be reached, asks for another token, or is neither.
    """
    for name in unset_names(cfg.token):
        raise ConfigError(
            f"rollout.token: the environment variable {name} is not set. Try export {name}=..."
        )
    headers = bearer(cfg.token if token is None else token)
    key = "rollout.start" if cfg.start else "rollout.server"
    return [
        _connect(HTTPClient(address, key, cfg.timeout, headers))
        for address in (cfg.addresses if addresses is None else addresses)
    ]


def _connect(client: HTTPClient) -> ServerAPI:
    try:
        return KINDS[find_kind(client)](client)
    except RefusedRequest as error:
        raise InferenceServerError(refusal(client.origin, error)) from error
    except RetryableFailure as error:
        raise InferenceServerError(
            f"{client.origin}: {error}. Start the server first, or let the run start one: "
            "rollout.start=vllm"
        ) from error


def refusal(origin: str, error: RefusedRequest, token: str = "rollout.token") -> str:
    """The line about a request that a server refused.

    Args:
        origin: config key and address of the server.
        error: the refusal.
        token: config key of the server's key.
    """
    if error.status in (401, 403):
        return (
            f"{origin}: asks for another key (HTTP {error.status}); need the one it was started "
            f"with. Try {token}='${{oc.env:NAME}}'"
        )
    return f"{origin}: {error}"

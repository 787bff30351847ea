"""SGLang's native endpoints, as of 0.5: token ids in and out, and new weights from a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_cli.http_client import HTTPClient, RefusedRequest, RetryableFailure
from rlhf_cli.rollout.server.api import (
    HEALTH_TIMEOUT,
    SYNC_TIMEOUT,
    ServerFacts,
    field_of,
    has_endpoint,
    real_numbers,
    whole_numbers,
)
from rlhf_cli.rollout.server.requests import EXCLUDED_BIAS, Answer, GenerationRequest

SYNC_ENDPOINTS = (
    "/update_weights_from_disk",
    "/update_weight_version",
    "/pause_generation",
    "/continue_generation",
)
ADAPTER_ENDPOINTS = ("/load_lora_adapter", "/unload_lora_adapter")


class SGLangServer:
    """An SGLang server.

    Args:
        client: sends its requests.
    """

    def __init__(self, client: HTTPClient) -> None:
        self.client, self.origin = client, client.origin

    def require_healthy(self) -> None:
        """Ask whether it can serve requests."""
        self.client.request("/health", timeout=HEALTH_TIMEOUT)

    def facts(self, *, syncs: bool, adapters: bool) -> ServerFacts:
        """Ask what it is."""
        info = self.client.request_json("/get_server_info", timeout=HEALTH_TIMEOUT)
        models = field_of(self.client.request_json("/v1/models", timeout=HEALTH_TIMEOUT), "data")
        needed = [
            "/generate",
            *(SYNC_ENDPOINTS if syncs else ()),
            *(ADAPTER_ENDPOINTS if adapters else ()),
        ]
        known = info if isinstance(info, dict) else {}
        return ServerFacts(
            f"SGLang {known.get('version', '')}".strip(),
            [str(field_of(model, "id")) for model in models],
            int(field_of(models, 0, "max_model_len") or 0),
            [
                f"{path} (SGLang 0.5.4 or later)"
                for path in needed
                if not has_endpoint(self.client, path)
            ],
            str(known.get("model_path") or ""),
        )

    def generate(self, request: GenerationRequest, model: str) -> Answer:
        """Ask for one response; `model` is an adapter where it is not the server's own model."""
        body = {
            "input_ids": list(request.prompt_ids),
            "sampling_params": sampling_params(request),
            "return_logprob": request.wants_logprobs,
            "logprob_start_len": -1,
            **({"lora_path": model} if model else {}),
        }
        return _read(self.client.request_json("/generate", body), request)

    def tokenize(self, text: str, model: str) -> list[int] | None:
        """Token ids of a text without special tokens."""
        body = {"prompt": text, "add_special_tokens": False}
        try:
            found = self.client.request_json("/tokenize", body, timeout=HEALTH_TIMEOUT)
        except RefusedRequest as error:
            if error.status == 404:
                return None
            raise
        return whole_numbers(field_of(found, "tokens"), "tokens")

    def base_name(self, model: str) -> str:
        """Nothing: a name asks for an adapter."""
        return ""

    def logprob_problem(self, model: str) -> str:
        """Say why it gives no log-probs; those that it gives are at the temperature."""
        body = {
            "input_ids": [0],
            "sampling_params": {"max_new_tokens": 1},
            "return_logprob": True,
        }
        meta = field_of(self.client.request_json("/generate", body), "meta_info")
        given = isinstance(meta, Mapping) and meta.get("output_token_logprobs")
        return "" if given else "gives no log-probs; need those of its tokens"

    def weight_version(self) -> str:
        """Name of its weights."""
        found = self.client.request_json("/get_model_info", timeout=HEALTH_TIMEOUT)
        return str(field_of(found, "weight_version"))

    def set_weight_version(self, version: str) -> None:
        """Name its weights."""
        body = {"new_version": version, "abort_all_requests": False}
        _require_success(self.client.request_json("/update_weight_version", body))

    def load_weights(self, folder: Path, version: str) -> None:
        """Load whole weights, with the requests in flight taken back to the queue around it.

        They go on with the new weights: their cache is computed again.
        """
        self.client.request("/pause_generation", b'{"mode": "retract"}')
        body = {"model_path": str(folder), "weight_version": version, "flush_cache": True}
        timeout = max(self.client.timeout, SYNC_TIMEOUT)
        path = "/update_weights_from_disk"
        _require_success(self.client.request_json(path, body, timeout=timeout))
        self.resume()

    def resume(self) -> None:
        """Let requests go on."""
        self.client.request("/continue_generation", b"{}")

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load an adapter under a new name."""
        body = {"lora_name": name, "lora_path": str(folder)}
        _require_success(self.client.request_json("/load_lora_adapter", body))

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter."""
        _require_success(self.client.request_json("/unload_lora_adapter", {"lora_name": name}))


def sampling_params(request: GenerationRequest) -> dict[str, Any]:
    """Sampling parameters of SGLang for a request; every one that has an effect is given."""
    sampling = request.sampling
    params: dict[str, Any] = {
        "n": 1,
        "sampling_seed": request.seed % 2**31,  # kept in 32 bits there
        "max_new_tokens": sampling.max_new_tokens,
        "min_new_tokens": sampling.min_new_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or -1,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "ignore_eos": True,
        "stop_token_ids": list(request.end_ids),
        "skip_special_tokens": False,
        "no_stop_trim": True,
    }
    if sampling.stop:
        params["stop"] = list(sampling.stop)
    if request.excluded:
        params["logit_bias"] = {str(token): EXCLUDED_BIAS for token in request.excluded}
    return params


def _read(answer: Any, request: GenerationRequest) -> Answer:
    if isinstance(answer, list):
        raise RetryableFailure("answers another number of samples than 1")
    tokens = whole_numbers(field_of(answer, "output_ids"), "output_ids")
    meta = field_of(answer, "meta_info")
    logprobs: list[float] = []
    if request.wants_logprobs:
        listed = field_of(meta, "output_token_logprobs") or []
        logprobs = real_numbers([field_of(one, 0) for one in listed], "log-probs")
    return Answer(
        tokens,
        logprobs,
        str(field_of(meta, "finish_reason", "type")),
        str(meta.get("weight_version") or ""),
    )


def _require_success(answer: Any) -> None:
    """Raise a failure where an operation did not succeed."""
    if not (isinstance(answer, Mapping) and answer.get("success")):
        message = answer.get("message") if isinstance(answer, Mapping) else answer
        raise RetryableFailure(f"could not do it: {' '.join(str(message).split())[:200]}")

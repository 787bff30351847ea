"""Endpoints of vLLM, as of 0.32: token ids in and out, and those of its development mode.

`/inference/v1/generate` (`--enable-scale-out`) takes and returns token ids, with the weights'
version for each span of a response. `VLLM_SERVER_DEV_MODE=1` opens the endpoints that change
weights, which ask for no key.
"""

from __future__ import annotations

import json
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

GENERATE = "/inference/v1/generate"

CERTAIN = 1e-3
"""Largest size of the log-prob of a token that is the only one, nats."""

SYNC_ENDPOINTS = {
    path: "VLLM_SERVER_DEV_MODE=1"
    for path in ("/collective_rpc", "/pause", "/resume", "/update_weight_version", "/weight_info")
}
ADAPTER_ENDPOINTS = {
    path: "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora"
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
}
"""Endpoint -> what opens it."""


class VLLMServer:
    """A vLLM server.

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
        version = self.client.request_json("/version", timeout=HEALTH_TIMEOUT)
        listed = self.client.request_json("/v1/models", timeout=HEALTH_TIMEOUT)
        models = field_of(listed, "data")
        needed = {
            GENERATE: "--enable-scale-out",
            **(SYNC_ENDPOINTS if syncs else {}),
            **(ADAPTER_ENDPOINTS if adapters else {}),
        }
        return ServerFacts(
            f"vLLM {field_of(version, 'version')}",
            [str(field_of(model, "id")) for model in models],
            int(field_of(models, 0, "max_model_len") or 0),
            [f"{path} ({opens})" for path, opens in needed.items() if not self._has(path)],
            str(models[0].get("root") or ""),
        )

    def _has(self, path: str) -> bool:
        # without its option, it answers a GET by 405 as with it, and a POST by 403
        return has_endpoint(self.client, path, b"{}" if path == GENERATE else None)

    def generate(self, request: GenerationRequest, model: str) -> Answer:
        """Ask for one response."""
        body = {
            "model": model,
            "token_ids": list(request.prompt_ids),
            "sampling_params": sampling_params(request),
        }
        try:
            answer = self.client.request_json(GENERATE, body)
        except RefusedRequest as error:
            if error.status == 404:  # a server that has started again has lost its adapters
                raise RetryableFailure(str(error)) from error
            raise
        choices = field_of(answer, "choices")
        if not isinstance(choices, list) or len(choices) != 1:
            raise RetryableFailure("answers another number of samples than 1")
        return _read_choice(choices[0], request)

    def tokenize(self, text: str, model: str) -> list[int] | None:
        """Token ids of a text without special tokens."""
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        try:
            found = self.client.request_json("/tokenize", body, timeout=HEALTH_TIMEOUT)
        except RefusedRequest as error:
            if error.status == 404:
                return None
            raise
        return whole_numbers(field_of(found, "tokens"), "tokens")

    def base_name(self, model: str) -> str:
        """The model's name itself."""
        return model

    def logprob_problem(self, model: str) -> str:
        """Say why its log-probs are not those that it samples from; empty where they are.

        Where only one token is allowed, its log-prob is 0 under the distribution that is sampled
        from, and not under the one before temperature.
        """
        body = {
            "model": model,
            "token_ids": [0],
            "sampling_params": {"max_tokens": 1, "logprobs": 0, "allowed_token_ids": [0]},
        }
        choice = field_of(self.client.request_json(GENERATE, body), "choices", 0)
        content = (choice.get("logprobs") or {}).get("content")
        if not content:
            return "gives no log-probs; need those of its tokens. Start it without --max-logprobs 0"
        if abs(float(field_of(content, 0, "logprob"))) > CERTAIN:
            return (
                "gives log-probs of the logits before temperature; need those that it samples "
                "from. Start it with --logprobs-mode processed_logprobs"
            )
        return ""

    def weight_version(self) -> str:
        """Name of its weights."""
        found = self.client.request_json("/weight_info", timeout=HEALTH_TIMEOUT)
        return str(field_of(found, "weight_version"))

    def set_weight_version(self, version: str) -> None:
        """Name its weights."""
        self.client.request_json("/update_weight_version", {"new_version": version})

    def resume(self) -> None:
        """Let requests go on."""
        self.client.request("/resume", b"{}")

    def load_weights(self, folder: Path, version: str) -> None:
        """Load whole weights, with the requests in flight frozen around it.

        They go on with the new weights: their cache is computed again, so that no token sees keys
        and values of the old ones.
        """
        self.client.request("/pause?mode=keep", b"{}")
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        self.client.request_json(
            "/collective_rpc", body, timeout=max(self.client.timeout, SYNC_TIMEOUT)
        )
        # after the weights are complete: what is cached in between would be of both
        path = "/reset_prefix_cache?reset_running_requests=true"
        if not field_of(self.client.request_json(path, {}), "success"):
            raise RetryableFailure("could not reset its prefix cache")
        self.set_weight_version(version)
        # not where one of these failed: the requests would go on with weights of two steps
        self.resume()

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load an adapter under a new name."""
        body = {"lora_name": name, "lora_path": str(folder)}
        self.client.request("/v1/load_lora_adapter", json.dumps(body).encode())

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter."""
        self.client.request("/v1/unload_lora_adapter", json.dumps({"lora_name": name}).encode())


def sampling_params(request: GenerationRequest) -> dict[str, Any]:
    """Sampling parameters of vLLM for a request; every one that has an effect is given."""
    sampling = request.sampling
    params: dict[str, Any] = {
        "n": 1,
        "seed": request.seed,
        "max_tokens": sampling.max_new_tokens,
        "min_tokens": sampling.min_new_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        # end tokens are ours, whatever the folder that the server was started with says
        "ignore_eos": True,
        "stop_token_ids": list(request.end_ids),
        "skip_special_tokens": False,
        "detokenize": bool(sampling.stop),
    }
    if sampling.stop:
        params |= {"stop": list(sampling.stop), "include_stop_str_in_output": True}
    if request.excluded:
        params["logit_bias"] = {str(token): EXCLUDED_BIAS for token in request.excluded}
    if request.wants_logprobs:
        params["logprobs"] = 0  # of the sampled token alone
    return params


def _read_choice(choice: Any, request: GenerationRequest) -> Answer:
    tokens = whole_numbers(field_of(choice, "token_ids"), "token_ids")
    logprobs: list[float] = []
    if request.wants_logprobs:
        content = field_of(choice, "logprobs", "content") or []
        logprobs = real_numbers([field_of(one, "logprob") for one in content], "log-probs")
    spans = choice.get("weight_versions") or []
    return Answer(
        tokens,
        logprobs,
        str(field_of(choice, "finish_reason")),
        str(field_of(spans, 0, "version")) if spans else "",
    )

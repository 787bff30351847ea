"""Log-probs that a server gives to tokens of others: those of a teacher."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_cli.http_client import RetryableFailure
from rlhf_cli.rollout.server.api import ServerAPI, field_of, real_numbers
from rlhf_cli.rollout.server.sglang import SGLangServer


class NoLogprobs(RetryableFailure):
    """The answer has no log-probs of the tokens that were sent."""


def score_tokens(api: ServerAPI, model: str, token_ids: Sequence[int], start: int) -> list[float]:
    """Log-probs of tokens under a server's model, at temperature 1.

    vLLM gives `prompt_logprobs` of the logits as they are, whatever `--logprobs-mode`. SGLang gives
    `input_token_logprobs` at the temperature of the request.

    Args:
        api: of the server.
        model: name of its model.
        token_ids: prompt and response.
        start: of the first token to be scored, at least 1.

    Returns:
        One number for each token from `start` on, nats.

    Raises:
        HTTPFailure: the server failed or refused, or its answer is not what was asked for.
    """
    ids = list(token_ids)
    score = _sglang if isinstance(api, SGLangServer) else _vllm
    found = real_numbers(score(api, model, ids, start), "log-probs")
    if len(found) != len(ids) - start:
        raise NoLogprobs(f"answers {len(found)} log-probs for {len(ids) - start} tokens")
    for value in found:
        # rounding can lift a certain token just above 0
        if not math.isfinite(value) or value > 1e-3:
            raise NoLogprobs(f"answers the log-prob {value:g}; need finite numbers, 0 at most")
    return found


def _vllm(api: ServerAPI, model: str, ids: list[int], start: int) -> list[Any]:
    """By the endpoint that every vLLM server has; it always generates a token."""
    body = {
        "model": model,
        "prompt": ids,
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": 0,  # of the prompt's own tokens alone
    }
    choice = field_of(api.client.request_json("/v1/completions", body), "choices", 0)
    listed = choice.get("prompt_logprobs") if isinstance(choice, Mapping) else None
    if not listed:
        raise NoLogprobs("gives no log-probs of a prompt (prompt_logprobs)")
    if len(listed) != len(ids):
        raise NoLogprobs(f"answers log-probs of {len(listed)} tokens; need {len(ids)}")
    pairs = zip(ids[start:], listed[start:], strict=True)
    return [field_of(entry, str(token), "logprob") for token, entry in pairs]


def _sglang(api: ServerAPI, model: str, ids: list[int], start: int) -> list[Any]:
    del model  # a name asks for an adapter
    body = {
        "input_ids": ids,
        "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
        "return_logprob": True,
        "logprob_start_len": start - 1,  # the first of these has no log-prob
    }
    meta = field_of(api.client.request_json("/generate", body), "meta_info")
    listed = meta.get("input_token_logprobs") if isinstance(meta, Mapping) else None
    if not listed:
        raise NoLogprobs("gives no log-probs of its input (input_token_logprobs)")
    last = listed[-(len(ids) - start) :]
    if [field_of(entry, 1) for entry in last] != ids[start:]:
        raise NoLogprobs("answers log-probs of other tokens than were sent")
    return [field_of(entry, 0) for entry in last]

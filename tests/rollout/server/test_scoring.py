"""Log-probs of given tokens by stub servers."""

import pytest

from rlhf_cli.http_client import RetryableFailure
from rlhf_cli.rollout.server.config import ServerConfig
from rlhf_cli.rollout.server.connect import connect
from rlhf_cli.rollout.server.scoring import NoLogprobs, score_tokens
from tests.rollout.server.stub import serving

BOTH = pytest.mark.parametrize("kind", ["vllm", "sglang"])


def api_of(stub):
    [api] = connect(ServerConfig(server=stub.url, timeout=5))
    return api


@BOTH
def test_the_response_is_scored_and_the_prompt_is_not(kind):
    with serving(kind=kind) as stub:
        assert score_tokens(api_of(stub), "tiny", [5, 6, 10, 20, 30], 2) == [-0.2, -0.4, -0.6]
        assert score_tokens(api_of(stub), "tiny", [5, 10], 1) == [-0.2]


@BOTH
def test_an_answer_without_log_probs_says_so(kind):
    with serving(kind=kind, mode="none") as stub, pytest.raises(NoLogprobs, match="no log-probs"):
        score_tokens(api_of(stub), "tiny", [5, 6], 1)


@BOTH
@pytest.mark.parametrize("value", [float("nan"), 0.5])
def test_numbers_that_are_no_log_probs_are_not_taken(kind, value):
    score = lambda ids: [value for _ in ids[1:]]  # noqa: E731
    with serving(kind=kind, score=score) as stub, pytest.raises(RetryableFailure, match="log-prob"):
        score_tokens(api_of(stub), "tiny", [5, 6], 1)


def test_log_probs_of_other_tokens_are_not_taken():
    def other(body):
        return {"meta_info": {"input_token_logprobs": [[None, 5, None], [-1.0, 7, None]]}}

    with serving(kind="sglang", always=other) as stub, pytest.raises(NoLogprobs, match="other"):
        score_tokens(api_of(stub), "tiny", [5, 6], 1)


def test_a_prompt_of_another_length_is_not_taken():
    def short(body):
        return {"choices": [{"prompt_logprobs": [None]}]}

    with serving(always=short) as stub, pytest.raises(NoLogprobs, match="of 1 tokens; need 2"):
        score_tokens(api_of(stub), "tiny", [5, 6], 1)

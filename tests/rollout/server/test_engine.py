"""Responses by servers: what they must be, and what happens while a server fails."""

import threading
import time

import pytest

from rlhf_cli.errors import DataError, InferenceServerError
from rlhf_cli.http_client import RetryableFailure
from rlhf_cli.rollout.config import SamplingConfig
from tests.helpers import tokenizer_of
from tests.rollout.server.helpers import MODEL, PROMPTS, TOKENIZER, Clock, engine_of, ids, respond
from tests.rollout.server.stub import model_writer, rule, serving, vllm_answer

KINDS = ("vllm", "sglang")


@pytest.mark.parametrize("kind", KINDS)
def test_responses_come_in_the_order_of_prompts_and_samples(kind):
    with serving(kind=kind) as stub:
        found = respond(engine_of(stub), samples=3)
    assert [one.index for one in found] == list(range(12))
    assert [one.prompt_index for one in found] == [k // 3 for k in range(12)]
    assert [list(one.prompt_ids) for one in found] == [p for p in PROMPTS for _ in range(3)]
    assert len({tuple(one.token_ids) for one in found}) == 12
    assert all(len(one.logprobs) == len(one.token_ids) == 6 for one in found)
    assert not any(one.finished for one in found)


def test_a_response_depends_on_its_prompts_number_and_not_on_the_others():
    with serving() as stub:
        engine = engine_of(stub)
        whole = respond(engine)
        assert ids(respond(engine)) == ids(whole)
        assert ids(respond(engine, [PROMPTS[2]], numbers=[2])) == ids(whole)[4:6]
        assert ids(respond(engine, [PROMPTS[2]], numbers=[9])) != ids(whole)[4:6]


def test_all_samples_of_a_prompt_come_from_one_server_and_prompts_from_all():
    with serving() as one, serving() as other:
        found = respond(engine_of(one, other))
        with serving() as alone:
            assert ids(found) == ids(respond(engine_of(alone)))
    asked = [
        {tuple(body["token_ids"]) for _, path, body in stub.calls if path.endswith("generate")}
        for stub in (one, other)
    ]
    assert asked == [{(5, 6, 7), (11,)}, {(8, 9), (12, 13, 14, 15)}]


def test_no_more_requests_are_in_flight_than_allowed():
    with serving(seconds=0.02) as stub:
        respond(engine_of(stub, concurrency=3), samples=4)
    assert stub.most_in_flight == 3


def test_servers_share_the_requests_in_flight_also_where_rollouts_overlap():
    lock, now, most = threading.Lock(), [0], [0]

    def count(_body):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1

    with serving(always=count) as one, serving(always=count) as other:
        engine = engine_of(one, other, concurrency=2)
        threads = [threading.Thread(target=respond, args=(engine,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most[0] == 2


def test_a_real_model_behind_the_server_gives_its_own_greedy_tokens_and_true_log_probs():
    from rlhf_cli.rollout.engine import generate

    write = model_writer(MODEL, TOKENIZER)
    greedy = SamplingConfig(max_new_tokens=8, temperature=0)
    with serving(write=write) as stub:
        found = respond(engine_of(stub, sampling=greedy), samples=1)
        assert ids(found) == ids(generate(MODEL, TOKENIZER, PROMPTS, greedy))
        assert [one.logprobs for one in found] == [[]] * 4  # no distribution
        drawn = respond(engine_of(stub, sampling=SamplingConfig(max_new_tokens=8)))
    assert all(-20 < value < 0 for one in drawn for value in one.logprobs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_response_is_finished_where_an_end_token_or_a_stop_string_ends_it(kind):
    def write(prompt, params, weights):
        tokens = {5: [20, 2], 8: [20, 30], 11: [20, 21, 22]}[prompt[0]]
        return tokens, [-1.0] * len(tokens), "length" if prompt[0] == 11 else "stop"

    stop = TOKENIZER.decode([30])
    sampling = SamplingConfig(max_new_tokens=3, stop=[stop])
    with serving(kind=kind, write=write) as stub:
        found = respond(engine_of(stub, sampling=sampling), PROMPTS[:3], samples=1)
    assert [one.finished for one in found] == [True, True, False]
    assert ids(found) == [[20, 2], [20, 30], [20, 21, 22]]


def test_every_sampling_key_is_sent_to_vllm():
    sampling = SamplingConfig(
        max_new_tokens=4, min_new_tokens=2, temperature=0.5, top_k=7, top_p=0.9, min_p=0.1
    )
    with serving() as stub:
        respond(engine_of(stub, sampling=sampling), [[5]], samples=1)
    (body,) = [body for _, path, body in stub.calls if path.endswith("generate")]
    params = body["sampling_params"]
    assert 0 <= params.pop("seed") < 2**63
    assert params == {
        "n": 1,
        "max_tokens": 4,
        "min_tokens": 2,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.9,
        "min_p": 0.1,
        "ignore_eos": True,
        "stop_token_ids": [2],
        "skip_special_tokens": False,
        "detokenize": False,
        "logprobs": 0,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_ids_without_a_token_are_never_sampled(kind):
    smaller = tokenizer_of(range(90))
    with serving(kind=kind) as stub:
        engine = engine_of(stub, tokenizer=smaller)
        respond(engine, [[5]], samples=1)
        sent = stub.calls[-1][2]["sampling_params"]["logit_bias"]
        assert sent == {str(token): -1e4 for token in range(90, 97)}
        stub.write = lambda *_: ([95] * 6, [-1.0] * 6, "length")
        with pytest.raises(InferenceServerError, match="token id 95, which the tokenizer has no"):
            respond(engine, [[5]], samples=1)


WRONG = [
    (([], [], "length"), "a response without tokens"),
    (([20] * 7, [-1.0] * 7, "length"), "answers 7 tokens; need 6 at most"),
    (([20] * 3, [-1.0] * 3, "length"), "after 3 tokens for its length; need 6"),
    (([20] * 5 + [97], [-1.0] * 6, "length"), "token id 97, which the model does not have"),
    (([20, -1], [-1.0] * 2, "stop"), "token id -1, which the model does not have"),
    (([20, 2, 20, 2], [-1.0] * 4, "stop"), "goes on after the end token 2"),
    (([20, 2], [-1.0], "stop"), "1 log-probs for 2 tokens"),
    (([20, 2], [], "stop"), "0 log-probs for 2 tokens"),
    (([20, 2], [-1.0, float("nan")], "stop"), "the log-prob nan"),
    (([20, 2], [-1.0, -9999.0], "stop"), "the log-prob -9999"),
    (([20, 2], [-1.0, 0.5], "stop"), "the log-prob 0.5"),
    (([20, 2], [-1.0, -1.0], "abort"), "by abort; need stop or length"),
    (([20, 20], [-1.0, -1.0], "stop"), "without an end token or a stop string"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("written", "line"), WRONG, ids=[line for _, line in WRONG])
def test_an_answer_that_cannot_be_trained_on_is_asked_for_again_and_then_an_error(
    kind, written, line
):
    calls = []

    def write(*given):
        calls.append(given)
        return written if len(calls) < 3 else rule(*given)

    with serving(kind=kind, write=write) as stub:
        (found,) = respond(engine_of(stub), [[5]], samples=1)
        assert len(found.token_ids) == 6
        assert len(calls) == 3
        stub.write = lambda *_: written
        clock = Clock()
        with pytest.raises(InferenceServerError, match=line) as caught:
            respond(engine_of(stub, clock=clock, deadline=20), [[5]], samples=1)
        assert clock.now == pytest.approx(20)
        assert len(str(caught.value).splitlines()) == 1
        assert "rollout.deadline=20 seconds" in str(caught.value)


GARBAGE = {
    "no json": lambda _: b"<html>busy</html>",
    "nothing": lambda _: b"",
    "a list": lambda _: [],
    "no choices": lambda _: {},
    "no sample": lambda _: {"choices": []},
    "two samples": lambda _: {"choices": [1, 2]},
    "text": lambda _: {"choices": [{"text": "yes"}]},
    "ids as text": lambda _: vllm_answer(["5"], [-1.0], "length", "default"),
    "log-probs as text": lambda _: vllm_answer([20] * 6, ["a"] * 6, "length", "default"),
    "no log-probs": lambda _: vllm_answer([20] * 6, [], "length", "default", logprobs=None),
    "busy": 503,
    "broken": 500,
    "too many": 429,
}


@pytest.mark.parametrize("name", GARBAGE)
def test_only_what_is_missing_is_asked_for_again(name):
    with serving() as stub:
        expected = ids(respond(engine_of(stub)))
        before = stub.count("/inference/v1/generate")
        stub.faults = [GARBAGE[name]] * 2
        assert ids(respond(engine_of(stub))) == expected
        assert stub.count("/inference/v1/generate") == before + len(expected) + 2


def test_a_server_that_dies_is_waited_for_until_the_deadline():
    clock = Clock()
    with serving() as one, serving() as other:
        engine = engine_of(one, other, clock=clock)
        expected = ids(respond(engine))
        one.is_dead = True
        revive = clock.sleep

        def sleep(seconds):
            revive(seconds)
            one.is_dead = clock.now < 60

        engine.connections[0]._sleep = sleep
        assert ids(respond(engine)) == expected
        one.is_dead, clock.now = True, -1e6
        asked = other.count("/inference/v1/generate")
        with pytest.raises(InferenceServerError, match=f"{one.url}: broke off.*no better within"):
            respond(engine)
        assert other.count("/inference/v1/generate") <= asked + 4  # nobody takes its prompts over


def test_a_server_that_hangs_is_given_up_after_timeout_and_deadline():
    with serving(seconds=0.3) as stub:
        engine = engine_of(stub, timeout=0.05, deadline=3)
        with pytest.raises(InferenceServerError, match="no answer within timeout"):
            respond(engine, [[5]], samples=1)


def test_health_comes_before_the_next_request():
    with serving() as stub:
        engine = engine_of(stub, deadline=30)
        stub.faults, stub.is_healthy = [503], False
        with pytest.raises(InferenceServerError, match="HTTP 503"):
            respond(engine, [[5]], samples=1)
        assert stub.count("/inference/v1/generate") == 1


@pytest.mark.parametrize("status", [400, 401, 307])
def test_a_refused_request_ends_at_once(status):
    with serving() as stub:
        engine = engine_of(stub)
        stub.always = status
        with pytest.raises(InferenceServerError) as caught:
            respond(engine, [[5]], samples=1)
        assert stub.count("/inference/v1/generate") == 1
    assert str(caught.value).startswith(f"rollout.server: {stub.url}: ")


def test_prompts_are_checked_before_any_request():
    with serving() as stub:
        engine = engine_of(stub)
        for prompt, line in (([], "number 4 has no tokens"), ([97], "number 4 has the token id")):
            with pytest.raises(DataError, match=line):
                respond(engine, [[5], prompt], numbers=[3, 4])
        assert respond(engine, []) == []
        assert not stub.count("/inference/v1/generate")


def test_requests_that_fail_at_once_ask_for_health_one_at_a_time():
    def hang(*_):
        time.sleep(0.1)
        raise RetryableFailure("hangs")

    with serving() as stub:
        engine = engine_of(stub)
        stub.always = 503
        (connection,) = engine.connections
        connection.deadline, connection._clock = 0.5, time.monotonic
        connection._sleep = lambda _: time.sleep(0.01)
        connection.api.require_healthy = hang
        began = time.monotonic()
        with pytest.raises(InferenceServerError, match="hangs"):
            respond(engine, samples=16)
    assert time.monotonic() - began < 3  # 64 requests, one after the other, would take 6.4


def test_the_same_servers_with_other_sampling():
    with serving() as stub:
        engine = engine_of(stub)
        short = engine.with_sampling(SamplingConfig(max_new_tokens=2, seed=1))
        assert {len(one.token_ids) for one in respond(short)} == {2}
        assert {len(one.token_ids) for one in respond(engine)} == {6}

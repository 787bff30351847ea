"""The client behind reward endpoints and inference servers; what it says is tested with them."""

import threading
import time
from itertools import islice

import pytest

from rlhf_cli.http_client import (
    HTTPClient,
    RefusedRequest,
    RetryableFailure,
    backoffs,
    excerpt,
    run_concurrently,
    with_retries,
)
from tests.rollout.server.stub import serving


def test_results_of_concurrent_calls_are_in_order_and_no_more_run_at_once_than_allowed():
    lock, now, most = threading.Lock(), [], [0]

    def act(item):
        with lock:
            now.append(item)
            most[0] = max(most[0], len(now))
        time.sleep(0.01 * (item % 3))
        with lock:
            now.remove(item)
        return -item

    assert run_concurrently(act, range(20), 4) == [-item for item in range(20)]
    assert 1 < most[0] <= 4
    assert run_concurrently(act, [], 4) == []


def test_the_first_error_is_raised_and_does_not_wait_for_the_others():
    release, begun = threading.Event(), []

    def act(item):
        begun.append(item)
        if item == 1:
            raise KeyError("one")
        release.wait(30)

    began = time.monotonic()
    with pytest.raises(KeyError, match="one"):
        run_concurrently(act, range(50), 2)
    assert time.monotonic() - began < 5
    release.set()
    assert len(begun) == 2


def test_retries_wait_longer_each_time_and_stop_at_a_refusal():
    assert list(islice(backoffs(), 8)) == [0.5, 1, 2, 4, 8, 16, 30, 30]
    waits, answers = (
        [],
        iter([RetryableFailure("a"), RetryableFailure("b"), RefusedRequest("c", 404)]),
    )

    def request():
        raise next(answers)

    with pytest.raises(RefusedRequest, match="c"):
        with_retries(request, 5, "key", waits.append)
    assert waits == [0.5, 1]


def test_paths_are_appended_and_the_answer_is_json():
    with serving() as stub:
        client = HTTPClient(stub.url, "key", 5, {"X-Own": "1"})
        assert client.request_json("/version") == {"version": "0.32.0"}
        assert client.request_json("/update_weight_version", {"new_version": "x"})["success"]
        assert stub.calls[-1] == ("POST", "/update_weight_version", {"new_version": "x"})
        with pytest.raises(RetryableFailure, match="answers nothing; need a JSON object"):
            client.request_json("/health")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RefusedRequest),
        (404, RefusedRequest),
        (408, RetryableFailure),
        (429, RetryableFailure),
        (500, RetryableFailure),
        (503, RetryableFailure),
    ],
)
def test_a_status_tells_whether_to_ask_again(status, kind):
    with serving() as stub:
        stub.always = status
        body = {"model": "tiny", "token_ids": [5], "sampling_params": {"max_tokens": 1}}
        with pytest.raises(kind, match=f"answers HTTP {status}: "):
            HTTPClient(stub.url, "key", 5).request_json("/inference/v1/generate", body)


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving() as stub:
        assert HTTPClient(stub.url, "key", 5).request_json("/version")
        elsewhere = HTTPClient(stub.url.replace("127.0.0.1", "localhost.example"), "key", 5)
        with pytest.raises(RetryableFailure, match="cannot be reached"):
            elsewhere.request("/version")


def test_a_long_answer_is_shown_by_its_start():
    assert excerpt(b" a\n b ") == "a b"
    assert excerpt(b"x" * 500) == "x" * 80 + "..."

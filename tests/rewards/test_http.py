"""Against a real server on this machine."""

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rlhf_cli.errors import DataError
from rlhf_cli.rewards.config import RewardsConfig, RewardTerm, ScorerConfig
from rlhf_cli.rewards.http import HTTPScorer
from rlhf_cli.rewards.rewards import load_combined_reward
from tests.rewards.helpers import context, samples, user

THREE = samples(("a", "bc"), (user("d"), "e"), ("Say:", "fgh"), answer=[1, 2, 3])


class Server(ThreadingHTTPServer):
    """Says nothing of clients that left: it may say so while another test looks at stderr."""

    def handle_error(self, request, client_address):
        pass


@contextmanager
def serving(answer, location=""):
    """A server; `answer` is given each request's object and says code and body.

    Args:
        answer: of a POST.
        location: where every request is redirected to, a HEAD with the code 302.
    """
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            sent.append((self.path, dict(self.headers)))
            code, body = answer(asked[-1])
            self.send_response(code)
            if location:
                self.send_header("Location", location)
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        def log_message(self, *_):
            pass

    def redirect(self):
        self.send_response(302)
        self.send_header("Location", location)
        self.end_headers()

    if location:
        Handler.do_HEAD = redirect
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/score", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


sent = []
"""The path and the headers of each request."""


def lengths(asked):
    return 200, {"scores": [len(text) for text in asked["responses"]]}


def scorer(url, **settings):
    """An endpoint that is asked without waiting, and the pauses that it would have made."""
    pauses = []
    return HTTPScorer(ScorerConfig(url=url, **settings), "reward.url", pauses.append), pauses


def told(url, **settings):
    with pytest.raises(DataError) as caught:
        scorer(url, **settings)[0](THREE)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert line.startswith(f"reward.url: {url}")
    return line


@pytest.fixture
def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_batches_are_sent_in_order_with_messages_and_columns():
    with serving(lengths) as (url, asked):
        assert scorer(url, batch_size=2)[0](THREE) == [2, 1, 3]
    assert asked == [
        {
            "prompts": ["a", [{"role": "user", "content": "d"}]],
            "responses": ["bc", "e"],
            "columns": {"answer": [1, 2]},
        },
        {"prompts": ["Say:"], "responses": ["fgh"], "columns": {"answer": [3]}},
    ]


class Meeting:
    """Holds each request until a number of others wait too, and counts those in flight."""

    def __init__(self, size):
        self.size, self.now, self.most = size, 0, 0
        self.changed = threading.Condition()

    def __call__(self, asked):
        with self.changed:
            self.now += 1
            self.most = max(self.most, self.now)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.most >= self.size, timeout=10)
        try:
            return lengths(asked)
        finally:
            with self.changed:
                self.now -= 1


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_as_many_requests_as_allowed_are_in_flight(at_once):
    meeting = Meeting(at_once)
    many = samples(*(("a", "b" * size) for size in range(12)))
    with serving(meeting) as (url, asked):
        assert scorer(url, batch_size=1, concurrency=at_once)[0](many) == [*range(12)]
    assert (meeting.most, len(asked)) == (at_once, 12)


def test_endpoints_of_several_terms_are_asked_at_once_and_combined_in_order():
    meeting = Meeting(2)
    with serving(meeting) as (one, _), serving(meeting) as (other, _):
        terms = [
            RewardTerm(url=one, weight=2),
            RewardTerm(pattern="e"),
            RewardTerm(url=other, name="again"),
        ]
        found = load_combined_reward(RewardsConfig(terms=terms), None, context()).score(THREE)
    assert meeting.most == 2
    assert [*found.by_term] == ["url", "pattern", "again"]
    assert found.total.tolist() == [6, 4, 9]


def test_of_batches_that_fail_the_first_is_named_and_no_further_one_is_sent():
    last = threading.Event()

    def answer(asked):
        [number] = asked["columns"]["answer"]
        if number == 1:  # the second batch fails first
            assert last.wait(10)
            return 404, b"one"
        last.set()
        return 404, b"two"

    many = samples(*(("a", "b") for _ in range(9)), answer=[*range(1, 10)])
    with serving(answer) as (url, asked), pytest.raises(DataError, match="answers HTTP 404: one"):
        scorer(url, batch_size=1, concurrency=2)[0](many)
    assert len(asked) == 2


def test_each_request_has_retries_of_its_own():
    failed = set()

    def answer(asked):
        [number] = asked["columns"]["answer"]
        if number not in failed:
            failed.add(number)
            return 503, b"busy"
        return lengths(asked)

    with serving(answer) as (url, asked):
        endpoint, pauses = scorer(url, batch_size=1, concurrency=3, retries=1)
        assert endpoint(THREE) == [2, 1, 3]
    assert (len(asked), pauses) == (6, [0.5] * 3)


def test_errors_of_the_server_are_answered_by_asking_again(capsys):
    codes = iter([500, 503, 429])

    def answer(asked):
        code = next(codes, 200)
        return (code, b"busy") if code != 200 else lengths(asked)

    with serving(answer) as (url, asked):
        endpoint, pauses = scorer(url)
        assert endpoint(THREE) == [2, 1, 3]
    assert (len(asked), pauses) == (4, [0.5, 1, 2])
    assert "answers HTTP 503: busy; asking again in 1 s" in capsys.readouterr().err


def test_errors_that_go_on_end_the_run_and_never_become_a_score():
    with serving(lambda _: (500, b"<b>\n out of\n memory")) as (url, asked):
        assert "answers HTTP 500: <b> out of memory; asked 3 times" in told(url, retries=2)
        assert len(asked) == 3


def test_a_request_that_is_refused_is_not_repeated():
    with serving(lambda _: (404, b"no such path")) as (url, asked):
        assert told(url).endswith("answers HTTP 404: no such path")
        assert len(asked) == 1


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (b"<html>", "answers <html>; need a JSON object"),
        (b"", "answers nothing; need a JSON object"),
        (b"\xff\xfe\x00", "need a JSON object"),
        ([1, 2, 3], "answers [1, 2, 3]; need a JSON object"),
        ({"score": [1, 2, 3]}, "need a JSON object"),
        ({"scores": [1, 2]}, "gave 2 scores for 3 responses"),
        ({"scores": 1}, "gave 1; need a list"),
        ({"scores": [1, None, 3]}, 'gave None for responses[1], whose prompt begins "d"'),
        (b'{"scores": [1, 2, NaN]}', 'gave nan for responses[2], whose prompt begins "Say:"'),
        (b"[" * 100_000, "need a JSON object"),
    ],
)
def test_garbage_is_told(body, line):
    with serving(lambda _: (200, body)) as (url, _):
        assert line in told(url)


def test_a_bad_score_in_a_later_batch_is_counted_from_the_first():
    with serving(lambda asked: (200, {"scores": ["x"] if "answer" else []})) as (url, _):
        assert "responses[0]" in told(url, batch_size=1)

    def last(asked):
        return 200, {"scores": [None if asked["columns"]["answer"] == [3] else 1]}

    with serving(last) as (url, _):
        assert "responses[2]" in told(url, batch_size=1)


def test_a_wrong_count_is_not_made_up_for_by_the_next_batch():
    def answer(asked):
        return 200, {"scores": [0] * {2: 3, 1: 1}[len(asked["responses"])]}

    with serving(answer) as (url, _):
        assert "gave 3 scores for 2 responses" in told(url, batch_size=2)


def test_a_slow_endpoint():
    done = threading.Event()

    def answer(asked):
        done.wait(10)
        return lengths(asked)

    with serving(answer) as (url, asked):
        line = told(url, timeout=0.05, retries=1)
        done.set()
    assert "no answer within timeout=0.05 seconds; asked 2 times" in line
    assert len(asked) == 2


def test_an_endpoint_that_hangs_up(free_port):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", free_port))
        listening.listen()
        stop = threading.Event()

        def hang_up():
            for _ in range(2):
                listening.accept()[0].close()
            stop.set()

        thread = threading.Thread(target=hang_up)
        thread.start()
        assert "; asked 2 times" in told(f"http://127.0.0.1:{free_port}/", retries=1)
        thread.join()


def test_nobody_there_is_found_out_before_the_run(free_port):
    cfg = RewardsConfig(url=f"http://127.0.0.1:{free_port}/score", retries=0)
    with pytest.raises(DataError, match=r"cannot be reached \(.*refused.*\); asked once"):
        load_combined_reward(cfg, None, context())


def test_a_listener_need_not_answer_what_it_was_not_made_for(capsys):
    with serving(lengths) as (url, asked):  # it has no HEAD
        rewards = load_combined_reward(RewardsConfig(url=url, timeout=5), None, context())
        assert asked == []
        assert rewards.score(THREE).total.tolist() == [2, 1, 3]
    assert capsys.readouterr().err == f"reward url: {url}\n"


def test_a_proxy_is_not_asked_about_this_machine(monkeypatch, free_port):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port}")
    with serving(lengths) as (url, _):
        assert scorer(url)[0](THREE) == [2, 1, 3]


def test_the_endpoint_gets_the_whole_address_and_the_headers():
    sent.clear()
    with serving(lengths) as (url, _):
        scorer(f"{url}?key=a", headers={"Authorization": "Bearer b"})[0](THREE)
    [(path, headers)] = sent
    assert path == "/score?key=a"
    assert headers["Authorization"] == "Bearer b"
    assert headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused_and_gets_no_header(code):
    sent.clear()
    with (
        serving(lengths) as (elsewhere, asked),
        serving(lambda _: (code, b""), location=f"{elsewhere}?token=hunter2") as (url, _),
    ):
        line = told(url, headers={"Authorization": "Bearer b"})
    assert line.startswith(f"reward.url: {url}: redirects to {elsewhere} (HTTP {code}); ")
    assert line.endswith("Try the final address as reward.url")
    assert asked == []
    assert [path for path, _ in sent] == ["/score"], "the redirect is neither followed nor repeated"


def test_a_redirect_is_found_out_before_the_run():
    with (
        serving(lengths) as (elsewhere, _),
        serving(lambda _: (302, b""), location=elsewhere) as (url, _),
        pytest.raises(DataError, match=rf"redirects to {elsewhere} \(HTTP 302\)"),
    ):
        load_combined_reward(RewardsConfig(url=url, timeout=5), None, context())


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("/v2?key=x", "{host}/v2"),
        ("http://me:pw@[bad", "an address that cannot be read"),
        ("ftp://h/x", "ftp://h/x"),
    ],
)
def test_any_address_of_a_redirect_is_one_line_without_secrets(location, shown):
    with serving(lambda _: (307, b""), location=location) as (url, _):
        host = url.removesuffix("/score")
        assert f"redirects to {shown.format(host=host)} (HTTP 307)" in told(url)

"""Contradictions of the group `rollout`, one line each."""

import pytest

from rlhf_cli.commands.served.config import sampling_problems
from rlhf_cli.config.references import literal_secrets
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.server.config import RolloutConfig, ServerConfig, is_loopback
from rlhf_cli.rollout.server.requests import response_seed

URL = "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"server": URL},
        {"server": [URL, "http://localhost:8001/"], "timeout": 5},
        {"server": "http://[::1]:8000", "lag": 2, "correction": "sequence"},
        {"server": "https://gpu.example:8000", "token": "x", "sync_folder": "/mnt/shared"},
        {"start": "vllm", "check_steps": 0},
        {"start": "env A=1 vllm serve {model} --port {port} --served-model-name {name}"},
        {"start": "/opt/vllm/bin/vllm serve", "correction_mask": True},
    ],
)
def test_what_fits_has_no_problem(given):
    assert RolloutConfig(**given).problems() == []


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"lag": 1}, "rollout.lag: given without rollout.server or rollout.start"),
        ({"correction": "token"}, "rollout.correction: given without rollout.server"),
        ({"check_steps": 3}, "rollout.check_steps: given without rollout.server"),
        ({"check_bound": 3}, "rollout.check_bound: given without rollout.server"),
        ({"token": "x"}, "rollout.token: given without rollout.server"),
        ({"concurrency": 3}, "rollout.concurrency: given without rollout.server"),
        ({"sync": "weights"}, "rollout.sync: given without rollout.server"),
        ({"server": URL, "start": "vllm"}, "rollout.start: given beside rollout.server"),
        ({"server": URL, "token": "a\nb"}, "rollout.token: has characters that no header"),
        ({"server": "http://127.0.0.1/ü"}, "need an address as http://127.0.0.1:8000"),
        ({"start": "vllm", "token": "x"}, "rollout.token: given with rollout.start"),
        ({"server": [URL, f"{URL}/"]}, f"rollout.server: got {URL} twice"),
        ({"server": "127.0.0.1:8000"}, "rollout.server: got 127.0.0.1:8000; need an address"),
        ({"server": "ftp://127.0.0.1"}, "rollout.server: got ftp://127.0.0.1; need an address"),
        ({"server": "http://:8000"}, "rollout.server: got http://:8000; need an address"),
        ({"server": "http://a:b:c"}, "need an address"),
        ({"server": f"{URL}?key=1"}, f"rollout.server: got {URL}; need an address"),
        ({"server": "http://me:pw@127.0.0.1"}, "got a user before @127.0.0.1; need the key in"),
        (
            {"server": "http://10.0.0.5:8000", "sync_folder": "/mnt"},
            "rollout.token: none given for http://10.0.0.5:8000",
        ),
        (
            {"server": "http://10.0.0.5:8000", "token": "x"},
            "rollout.sync_folder: none given for http://10.0.0.5:8000",
        ),
        ({"start": "vllm 'serve"}, "rollout.start: got vllm 'serve; need a command as a shell"),
        ({"start": "vllm {modle}"}, "rollout.start: got {modle} in the command; need one of"),
        ({"server": URL, "sync": "nccl"}, "rollout.sync: got nccl, which is not supported"),
        (
            {"server": URL, "check_steps": 0, "check_bound": 1},
            "rollout.check_bound: given with rollout.check_steps=0",
        ),
        (
            {"server": URL, "correction": "none", "correction_cap": 2},
            "rollout.correction_cap: given with rollout.correction=none",
        ),
        (
            {"server": URL, "correction": "none", "correction_mask": True},
            "rollout.correction_mask: given with rollout.correction=none",
        ),
    ],
)
def test_each_contradiction_is_one_line(given, line):
    (problem,) = RolloutConfig(**given).problems()
    assert line in problem
    assert len(problem.splitlines()) == 1
    assert "pw" not in problem


def test_a_command_that_trains_nothing_needs_no_folder():
    assert ServerConfig(server="http://10.0.0.5:8000", token="x").problems() == []
    (problem,) = ServerConfig(timeout=5).problems()
    assert problem.startswith("rollout.timeout: given without")


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("localhost.evil.example", False),
    ],
)
def test_only_this_machines_own_addresses_need_no_key(host, own):
    assert is_loopback(host) is own


def test_a_literal_token_is_a_secret():
    (found,) = literal_secrets({"rollout": {"token": "abc"}})
    assert found[0] == "rollout.token"
    assert "abc" not in found[1]
    assert not [*literal_secrets({"rollout": {"token": "${oc.env:KEY}"}})]


def test_sampling_keys_that_servers_do_not_follow_are_refused():
    assert sampling_problems(SamplingConfig(top_k=3, stop=["x"])) == []
    (line,) = sampling_problems(SamplingConfig(cuda_graphs=True))
    assert line.startswith("sampling.cuda_graphs: ")
    (line,) = sampling_problems(SamplingConfig(min_new_tokens=3, stop=["x"]))
    assert "Try sampling.min_new_tokens=0" in line


def test_seeds_differ_and_depend_on_three_numbers():
    seeds = {response_seed(s, p, k) for s in range(3) for p in range(30) for k in range(8)}
    assert len(seeds) == 720
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert response_seed(1, 2, 3) == response_seed(1, 2, 3)

"""What docs/rewards.md shows."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_cli.rewards.config import RewardsConfig
from rlhf_cli.rewards.rewards import load_combined_reward
from tests.rewards.helpers import compose, context, rewards, samples

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


JUDGE, SLOW_JUDGE, SERVER = blocks("python")


@pytest.fixture(autouse=True)
def _files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("JUDGE_KEY", "JUDGE_TOKEN"):
        monkeypatch.setenv(name, "given")
    Path("judge.py").write_text(JUDGE)
    for name in ("reward", "safe", "helpful"):
        Path("runs", name).mkdir(parents=True)
        settings = {"architectures": ["XForSequenceClassification"], "id2label": {"0": "score"}}
        Path("runs", name, "config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("text", blocks("yaml"))
def test_a_recipe_of_the_page_composes(text):
    Path("page.yaml").write_text(text)
    assert rewards("config=page.yaml").is_given


def test_the_words_of_the_page_compose():
    [word] = re.findall(r"`reward.terms=\"(.*)\"`", PAGE)
    assert len(rewards(f"reward.terms={word}").terms) == 2


def test_every_key_of_the_page_is_one():
    known = {f"reward.{name}" for name in compose().tree["reward"]}
    assert {*re.findall(r"`(reward\.\w+)", PAGE)} <= known


def test_the_function_of_the_page():
    judge = load_combined_reward(RewardsConfig(function="judge.py:score"), None, context())
    given = samples(("2 + 2?", "It is 4."), ("2 + 3?", "It is 4."), answer=["4", "5"])
    assert judge.score(given).total.tolist() == pytest.approx([1.08, 0.08])


def test_the_asynchronous_function_of_the_page():
    Path("slow_judge.py").write_text(SLOW_JUDGE)
    judge = load_combined_reward(RewardsConfig(function="slow_judge.py:score"), None, context())
    for _ in range(2):
        assert judge.score(samples(*(("a", "b" * n) for n in range(20)))).total.tolist() == [
            *range(20)
        ]


def test_the_endpoint_of_the_page_in_a_process_of_its_own():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER.replace("8000", port)], stderr=subprocess.DEVNULL
    )
    try:
        cfg = RewardsConfig(url=f"http://127.0.0.1:{port}/score", retries=6)
        endpoint = load_combined_reward(cfg, None, context())
        assert endpoint.score(samples(("a", "one two"), ("b", ""))).total.tolist() == [-18, -20]
    finally:
        server.terminate()
        server.wait()

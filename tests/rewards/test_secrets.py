"""A key of the environment reaches the endpoint, and nothing else."""

import json
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlhf_cli import cli
from rlhf_cli.config.references import literal_secrets, public_url
from rlhf_cli.errors import ConfigError
from rlhf_cli.launch.worker import Task
from rlhf_cli.rewards.http import HTTPScorer
from rlhf_cli.runs import log
from rlhf_cli.runs.settings import read_settings
from tests.rewards.test_http import serving

KEY, TOKEN = "sk-4f9a8d1c", "hunter2hunter2"
FAST = ["train.precision=fp32", "batch_size=2", "max_steps=1", "max_new_tokens=2", "ppo_epochs=1"]


@pytest.fixture(autouse=True)
def _environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("JUDGE_TOKEN", TOKEN)
    Path("prompts.jsonl").write_text('{"prompt": "Tea?"}\n{"prompt": "Salt?"}\n')


@contextmanager
def judging(answer=lambda asked: (200, {"scores": [1.0] * len(asked["responses"])})):
    """A recipe for a judge on this machine that wants a key in its address and a header."""
    with serving(answer) as (url, asked):
        Path("ppo.yaml").write_text(
            "model: tiny\ndata: prompts.jsonl\nlog.trackers: [tensorboard]\nreward:\n"
            f'  url: "{url}?key=${{oc.env:JUDGE_KEY}}"\n'
            '  headers: {Authorization: "Bearer ${oc.env:JUDGE_TOKEN}", X-Team: red}\n'
        )
        yield url, asked


def leaks(folder: Path) -> list[str]:
    """The files that hold a secret."""
    found = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [
        str(path)
        for path in found
        if any(secret.encode() in path.read_bytes() for secret in (KEY, TOKEN))
    ]


def test_a_run_writes_and_says_no_secret(capsys):
    with judging() as (_, asked):
        assert cli.main(["ppo", "config=ppo.yaml", *FAST, "output_dir=run"]) == 0
        assert asked
        said = capsys.readouterr()
        assert KEY not in said.err + said.out
        assert TOKEN not in said.err + said.out
        assert {"config.yaml", "manifest.json", "log.txt", "trackers"} <= {
            path.name for path in Path("run").iterdir()
        }
        assert leaks(Path("run")) == []
        text = Path("run/config.yaml").read_text()
        assert "?key=${oc.env:JUDGE_KEY}" in text
        assert "Authorization: Bearer ${oc.env:JUDGE_TOKEN}" in text
        assert cli.main(["ppo", "config=ppo.yaml", *FAST, "output_dir=run"]) == 0
        assert "already complete" in capsys.readouterr().out
        assert cli.main(["ppo", "config=run/config.yaml", "output_dir=again"]) == 0
        assert leaks(Path("again")) == []


def test_a_server_that_repeats_the_key_does_not_leak_it(capsys):
    def refuse(asked):
        return 403, f"wrong key {KEY}, token {TOKEN}".encode()

    with judging(refuse):
        assert cli.main(["ppo", "config=ppo.yaml", *FAST, "output_dir=run"]) == 3
    said = capsys.readouterr().err
    assert "answers HTTP 403: wrong key ***, token ***" in said
    assert KEY not in said
    assert leaks(Path(".")) == []


def test_what_is_shown_of_a_configuration_holds_no_secret(capsys):
    with judging():
        for flag in ("--cfg", "--provenance"):
            assert cli.main(["ppo", "config=ppo.yaml", flag]) == 0
            out = capsys.readouterr().out
            assert "${oc.env:JUDGE_KEY}" in out
            assert KEY not in out


def test_a_wrong_value_from_the_environment_is_not_shown(capsys):
    words = ["ppo", "model=tiny", "data=tiny", "reward.url=${oc.env:JUDGE_KEY}"]
    assert cli.main(words) == 2
    assert "reward.url: got ***; need an address" in capsys.readouterr().err
    assert cli.main([*words[:3], "reward.url=http://h?key=${oc.env:JUDGE_NONE}"]) == 2
    assert "the environment variable JUDGE_NONE is not set" in capsys.readouterr().err


@pytest.mark.parametrize(
    "word",
    [
        f"reward.url=http://127.0.0.1/s?key={KEY}",
        f"reward.url=http://127.0.0.1/s?a=1&access_token={KEY}",
        f"reward.url=http://me:{KEY}@127.0.0.1/s",
        f"reward.headers={{Authorization: 'Bearer {KEY}'}}",
        f"reward.headers={{X-Api-Key: {KEY}}}",
        f"reward.terms=[{{url: 'http://127.0.0.1/s?token={KEY}'}}]",
    ],
)
def test_a_secret_in_plain_text_is_refused_and_not_shown(word, capsys):
    assert cli.main(["ppo", "model=tiny", "data=tiny", word]) == 2
    said = capsys.readouterr().err
    assert "need it from the environment" in said or "need it in a header" in said
    assert "${oc.env:NAME}" in said
    assert KEY not in said


def test_ordinary_addresses_and_headers_are_no_secrets():
    values = {
        "reward": {
            "url": "http://127.0.0.1:8000/score?model=a&keyboard=b&key=",
            "headers": {"X-Team": "red", "Authorization": "Bearer ${oc.env:T}"},
        }
    }
    assert list(literal_secrets(values)) == []


def test_an_address_in_a_message_has_neither_user_nor_query():
    assert public_url("https://me:pw@host:8/score?key=x#y") == "https://host:8/score"


def test_ranks_know_what_to_hide(monkeypatch):
    log.set_secret_references({"reward.url": "http://h?key=${oc.env:JUDGE_KEY}"})
    task = Task(**json.loads(Task("ppo", {}, "run").to_json()))
    log.set_secret_references({})
    log.set_secret_references(task.references)
    assert log.redact(f"asked {KEY}") == "asked ***"
    assert log.hide_secrets({"reward": {"url": KEY}}) == {
        "reward": {"url": "http://h?key=${oc.env:JUDGE_KEY}"}
    }
    log.set_secret_references({})


def test_a_run_is_read_back_where_the_variable_is_not_set(monkeypatch):
    Path("run").mkdir()
    Path("run/config.yaml").write_text(
        "stage: ppo\nmodel: {path: tiny}\ndata: {path: tiny}\n"
        'reward: {url: "http://127.0.0.1/s?key=${oc.env:JUDGE_KEY}"}\n'
    )
    monkeypatch.delenv("JUDGE_KEY")
    settings = read_settings("run")
    assert settings is not None
    assert settings.config.reward.url.endswith("?key=${oc.env:JUDGE_KEY}")
    with pytest.raises(ConfigError, match="environment variable JUDGE_KEY is not set"):
        HTTPScorer(settings.config.reward, "reward.url")


SFT = ["sft", "model=tiny", "data=tiny", "train.precision=fp32", "max_steps=1", "output_dir=run"]


def test_a_value_of_the_environment_that_changes_the_result_is_compared(monkeypatch, capsys):
    words = [*SFT, "train.schedule=${oc.env:SCHEDULE}"]
    monkeypatch.setenv("SCHEDULE", "linear")
    assert cli.main(words) == 0
    assert "schedule: linear" in Path("run/config.yaml").read_text()
    assert cli.main(words) == 0
    assert "already complete" in capsys.readouterr().out
    monkeypatch.setenv("SCHEDULE", "constant")
    assert cli.main(words) == 2
    assert "train.schedule: linear -> constant" in capsys.readouterr().err


def test_a_wrong_value_that_is_no_secret_is_shown(monkeypatch, capsys):
    monkeypatch.setenv("RATE", "0.001x")
    assert cli.main([*SFT, "train.lr=${oc.env:RATE}"]) == 2
    assert "train.lr: got 0.001x" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["accessToken", "X-AccessToken", "myAPIKey", "HTTPToken"])
def test_a_name_in_camel_case_is_seen_as_that_of_a_secret(name):
    in_header = {"reward": {"headers": {name: KEY}}}
    in_url = {"reward": {"url": f"http://127.0.0.1/s?{name}={KEY}"}}
    assert [key for key, _ in literal_secrets(in_header)] == [f"reward.headers.{name}"]
    assert [key for key, _ in literal_secrets(in_url)] == ["reward.url"]


@pytest.mark.parametrize("name", ["Monkey", "tokenLimit", "keyboard", "authorName"])
def test_a_name_with_other_words_is_not_that_of_a_secret(name):
    values = {"reward": {"url": f"http://h?{name}=1", "headers": {name: "1"}}}
    assert list(literal_secrets(values)) == []

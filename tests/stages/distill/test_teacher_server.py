"""Distillation from a teacher that is a server; the server is a stub around a real model."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_cli import cli
from rlhf_cli.train.metrics import read_metrics
from tests.rollout.server.stub import serving
from tests.stages.distill.conftest import words_of


def scorer(folder):
    """Log-probs of tokens under a model, as a server computes them."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()

    @torch.no_grad()
    def score(ids):
        row = torch.tensor([ids])
        logprobs = model(row).logits[0, :-1].log_softmax(-1)
        return logprobs.gather(1, row[0, 1:, None]).squeeze(1).tolist()

    return score


@pytest.fixture
def server(models):
    tokenizer = AutoTokenizer.from_pretrained(models / "teacher")
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    with serving(rows=len(tokenizer), tokenize=encode, score=scorer(models / "teacher")) as stub:
        yield stub


def test_a_student_that_is_the_servers_model_learns_nothing(server, models, distill):
    [line] = distill(f"teacher={server.url}", f"model={models}/teacher", "max_steps=1")
    assert abs(line["loss"]) < 1e-6
    assert line["grad_norm"] < 1e-5
    assert line["time/teacher"] > 0


@pytest.mark.parametrize("kind", ["vllm", pytest.param("sglang", marks=pytest.mark.slow)])
def test_the_mean_log_ratio_estimates_the_reverse_kl(kind, server, models, distill):
    server.kind = kind
    words = ("max_steps=1", "samples_per_prompt=64", "batch_size=8", "sample_steps=0")
    [exact] = distill(*words, out="exact")
    [sampled] = distill(*words, f"teacher={server.url}", out="sampled")
    # 4096 tokens of a log-ratio whose deviation is about 1.4: the standard error is 0.02
    assert sampled["divergence/student"] == pytest.approx(exact["loss"], abs=0.1)
    assert sampled["loss"] == pytest.approx(sampled["divergence/student"], rel=1e-5)


@pytest.mark.slow
def test_the_student_comes_nearer_to_the_server(server, distill, files):
    words = (f"teacher={server.url}", "data.eval=prompts.jsonl", "lr=3e-2", "max_steps=40")
    lines = distill(*words, "samples_per_prompt=8", "train.schedule=constant")
    assert lines[-1]["eval/loss"] < 0.9 * lines[0]["eval/loss"]
    assert cli.main(["evaluate", "run", "output=found.json", "precision=fp32"]) == 0
    found = {
        one["metric"]: one["value"] for one in json.loads(Path("found.json").read_text())["results"]
    }
    assert found["loss"] == pytest.approx(lines[-1]["eval/loss"], rel=1e-3)


def test_a_server_that_generates_and_one_that_scores(server, models, distill, files):
    """Responses of a server have importance weights, which are 1 where it has our weights."""
    from tests.rollout.server.stub import Stub, model_writer

    tokenizer = AutoTokenizer.from_pretrained(models / "student")
    student = AutoModelForCausalLM.from_pretrained(models / "student").eval()
    stub = Stub(
        rows=len(tokenizer), tokenize=server.tokenize, write=model_writer(student, tokenizer)
    )
    with serving(stub) as rollouts:
        words = (f"rollout.server={rollouts.url}", "max_steps=2")
        for line in distill(*words, f"teacher={server.url}", out="both"):
            assert line["correction/weight"] == pytest.approx(1, abs=1e-4)
            assert line["rollout/mismatch"] < 1e-4
        for line in distill(*words, out="one"):
            assert line["rollout/mismatch"] < 1e-4
            assert line["rollout/staleness"] == 0
            assert "correction/weight" not in line
        late = distill(*words, f"teacher={server.url}", "rollout.lag=1", "max_steps=3", out="late")
        assert [line["rollout/staleness"] for line in late] == [0, 1, 1]
        assert all(line["correction/weight"] <= 3 for line in late)


def told(models, *words):
    return cli.main(words_of(models, *words))


def test_a_server_that_cannot_be_reached(models, files, capsys):
    assert told(models, "teacher=http://127.0.0.1:9") == 1
    error = capsys.readouterr().err
    assert "teacher: http://127.0.0.1:9: cannot be reached" in error
    assert "Start the teacher's server first" in error


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mode": "none"}, "gives no log-probs of a prompt"),
        ({"rows": 500}, "does not score token id 1023"),
        ({"context": 16}, "takes 16 tokens; need"),
        ({"tokenize": lambda text: [1]}, "has another vocabulary"),
    ],
    ids=["no log-probs", "fewer ids", "short", "tokenizer"],
)
def test_a_server_that_is_no_teacher_of_the_student(
    changed, message, server, models, files, capsys
):
    for name, value in changed.items():
        setattr(server, name, value)
    assert told(models, f"teacher={server.url}") == 2
    assert message in capsys.readouterr().err


def test_a_key_is_asked_for(server, models, files, capsys, monkeypatch):
    server.token = "sesame"
    assert told(models, f"teacher={server.url}") == 1
    assert "teacher_token='${oc.env:NAME}'" in capsys.readouterr().err
    monkeypatch.setenv("TEACHER_KEY", "sesame")
    words = (f"teacher={server.url}", "teacher_token=${oc.env:TEACHER_KEY}", "max_steps=1")
    assert told(models, *words) == 0
    assert "sesame" not in (files / "run" / "config.yaml").read_text()


def test_a_server_on_another_machine_needs_a_key(models, files, capsys):
    assert told(models, "teacher=http://teacher.example:8000") == 2
    assert "teacher_token: none given for http://teacher.example:8000" in capsys.readouterr().err


def test_a_server_that_dies_ends_the_run_with_a_checkpoint(
    server, models, files, monkeypatch, capsys
):
    from rlhf_cli.stages.distill import teacher_server

    monkeypatch.setattr(teacher_server.LIMITS, "deadline", 0.2)
    asked = []
    score = server.score

    def dying(ids):
        asked.append(ids)
        server.is_dead = len(asked) > 10
        return score(ids)

    server.score = dying
    assert told(models, f"teacher={server.url}", "max_steps=6") == 1
    assert "teacher: " in capsys.readouterr().err
    assert len(read_metrics(files / "run" / "metrics.jsonl")) >= 1
    assert list((files / "run" / "checkpoints").iterdir())

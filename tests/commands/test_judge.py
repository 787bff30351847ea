"""Models' answers, scored by a judge and compared."""

import json
import math
from pathlib import Path

import pytest

from rlhf_cli import cli
from rlhf_cli.commands.evaluate import judge
from rlhf_cli.resources import shipped_folder

PROMPTS = [f"Tell {name} about {topic}." for name in ("Ana", "Ben") for topic in ("tea", "jazz")]
JUDGE = """
def length(*, prompts, responses, **columns):
    return [len(response) for response in responses]

def alike(*, prompts, responses, **columns):
    return [1.0 for prompt in prompts if prompt[0]["role"] == "user"]

def fails(*, prompts, responses, **columns):
    return [1 / 0]

def short(*, prompts, responses, **columns):
    return [1.0]

def blank(*, prompts, responses, **columns):
    return [float("nan") for _ in responses]
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("judge.py").write_text(JUDGE)
    Path("broken.py").write_text("import nothing_of_this_name\n")
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in PROMPTS]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def ask(*words: object, judge: str = "judge.py:length") -> int:
    common = [f"judge={judge}", "prompts=prompts.jsonl", "max_new_tokens=8", "precision=fp32"]
    return cli.main(["evaluate", *map(str, words), *common])


def results(*words: object, **changes: str) -> dict[tuple[str, str], dict]:
    assert ask(*words, "output=out.json", **changes) == 0
    found = json.loads(Path("out.json").read_text())["results"]
    return {(row["run"], row["metric"]): row for row in found}


def test_wins_are_counted_by_the_scores_of_the_answers(run_of, capsys):
    sft, base = run_of("sft"), run_of("pretrain")
    found = results(sft, f"baseline={base}", "batch_size=3")
    answers = [row["answers"] for row in json.loads(Path("out.json").read_text())["answers"]]
    own, other = ([row[name]["score"] for row in answers] for name in ("sft", "pretrain"))
    assert own == [len(row["sft"]["response"]) for row in answers]
    wins = sum(a > b for a, b in zip(own, other, strict=True))
    losses = sum(a < b for a, b in zip(own, other, strict=True))
    assert found["sft", "wins"]["value"] == wins
    assert found["sft", "losses"]["value"] == losses
    assert found["sft", "ties"]["value"] == 4 - wins - losses
    assert found["sft", "win rate"]["value"] == wins / (wins + losses)
    assert found["sft", "win rate"]["n"] == wins + losses
    assert found["sft", "score"]["value"] == sum(own) / 4
    assert found["pretrain", "score"]["value"] == sum(other) / 4
    gain = sum(own) / 4 - sum(other) / 4
    assert found["sft", "score gain"]["value"] == pytest.approx(gain)
    assert 0 <= found["sft", "ended"]["value"] <= 1
    assert ("pretrain", "win rate") not in found
    assert capsys.readouterr().out.splitlines()[0].split() == ["sft", "pretrain", "n"]


def test_a_model_ties_with_itself(run_of):
    """Both answer with the same draws."""
    sft = run_of("sft")
    found = results(sft, f"baseline={sft}/model")
    [ties] = [row for (_, metric), row in found.items() if metric == "ties"]
    [rate] = [row for (_, metric), row in found.items() if metric == "win rate"]
    assert (ties["value"], rate["value"], rate["n"]) == (4, None, 0)


def test_draws_are_at_a_temperature_and_by_a_seed(run_of):
    def texts(*words: str) -> list[str]:
        results(run_of("sft"), *words)
        rows = json.loads(Path("out.json").read_text())["answers"]
        return [row["answers"]["sft"]["response"] for row in rows]

    first = texts()
    assert texts() == first
    assert texts("temperature=0.7") == first
    assert texts("sampling.seed=1") != first


def test_without_a_baseline_each_model_has_its_score(run_of):
    found = results(run_of("sft"), run_of("pretrain"), judge="judge.py:alike")
    assert {metric for _, metric in found} == {"score", "ended"}
    assert found["sft", "score"] == {
        "run": "sft", "metric": "score", "value": 1.0, "low": None, "high": None, "n": 4,
    }  # fmt: skip


def test_the_shipped_judge_scores_the_shipped_prompts(run_of):
    judge = f"judge={shipped_folder('recipes') / 'tiny' / 'judge.py'}:score"
    words = [str(run_of("sft")), judge, "prompts=tiny", "max_new_tokens=4", "output=out.json"]
    assert cli.main(["evaluate", *words, "batch_size=100"]) == 0
    found = json.loads(Path("out.json").read_text())["results"]
    assert found[0]["n"] == 100
    assert 0 <= found[0]["value"] <= 6


@pytest.mark.parametrize(
    ("judge", "code", "line"),
    [
        ("judge.py:nobody", 2, "judge: got judge.py:nobody; judge.py defines no nobody, it has "
         "length, alike, fails, short, blank"),
        ("broken.py:score", 2, "judge: got broken.py:score; broken.py defines no score, it has "
         "nothing_of_this_name. Try judge=broken.py:nothing_of_this_name"),
        ("judge.py:fails", 3, "judge: {}/judge.py:fails raised ZeroDivisionError: division by zero "
         "(judge.py:9: return [1 / 0]), for responses[0], whose prompt begins"),
        ("judge.py:short", 3, "judge: {}/judge.py:short gave 1 scores for 4 responses; need"),
        ("judge.py:blank", 3, "judge: {}/judge.py:blank gave nan for responses[0], whose prompt"),
    ],
)  # fmt: skip
def test_a_judge_that_fails_is_one_line(judge, code, line, run_of, capsys, tmp_path):
    assert ask(run_of("sft"), judge=judge) == code
    lines = capsys.readouterr().err.splitlines()
    [told] = [text for text in lines if text.startswith("error: ")]
    assert told.startswith(f"error: {line.format(tmp_path)}")


@pytest.mark.parametrize(
    ("words", "begins"),
    [
        (["judge=judge.py:length"], "prompts: none given; the judge needs answers to prompts."),
        (["judge=judge.py", "prompts=tiny"], "judge: got judge.py; need "
         "FILE.py:FUNCTION. Try judge=judge.py:length"),
        (["judge=jugde.py:length", "prompts=tiny"], "judge: got jugde.py:length; need a file "
         "that exists. Try judge=judge.py:length"),
        (["judge=tiny", "prompts=tiny"], "judge: got tiny; need FILE.py:FUNCTION"),
        (["judge=judge.py:length", "prompts=tiny", "data=tiny"], "data.path: given beside judge="),
    ],
)  # fmt: skip
def test_what_a_judge_needs_is_told_at_once(words, begins, capsys):
    assert cli.main(["evaluate", "tiny", *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {begins}")


def test_a_reward_model_writes_no_answers(capsys):
    Path("rm").mkdir()
    Path("rm/artifact.json").write_text('{"kind": "reward_model"}')
    assert cli.main(["evaluate", "rm", "judge=judge.py:length", "prompts=tiny"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: model.path: ")
    assert "is a reward model, which writes no answers" in error


def test_a_judge_in_a_recipe_is_found_beside_it(capsys):
    Path("deep").mkdir()
    Path("deep/own.py").write_text(JUDGE)
    for named in ("./own.py:length", "own.py:length"):
        Path("deep/r.yaml").write_text(f"judge: {named}\nprompts: tiny\nmodel: tiny\n")
        assert cli.main(["evaluate", "config=deep/r.yaml", "--cfg"]) == 0
        assert f"judge: {Path('deep/own.py').absolute()}:length" in capsys.readouterr().out


def test_ties_and_wins_of_equal_scores():
    answers = judge.Responses([[1], [1]], [[2], [3]], ["x", "y"], [True, False])
    one = judge.JudgedModel("a", answers, [1.0, 2.0])
    other = judge.JudgedModel("b", answers, [1.0, 1.0])
    found = {r.metric: r.estimate for r in judge._results(one, other, seed=0)}
    assert [found[name].value for name in ("wins", "losses", "ties")] == [1, 0, 1]
    assert (found["win rate"].value, found["win rate"].n) == (1.0, 1)
    assert found["ended"].value == 0.5
    assert math.isnan(found["ties"].low)

"""Several responses to a prompt: all of them, the best by a score, or a ranking."""

import json
from pathlib import Path

import pytest

from rlhf_cli import cli
from rlhf_cli.commands.generate import BestRows, RankedRows
from rlhf_cli.commands.generator import Responses
from rlhf_cli.data.prompts import PromptSet
from rlhf_cli.data.records.fields import Message
from rlhf_cli.rewards.config import RewardsConfig
from rlhf_cli.rewards.rewards import load_combined_reward
from tests.helpers import last_of_each
from tests.rewards.helpers import context

PROMPTS = ["Tell Ana about tea.", "Tell Ben about jazz.", "Tell Ana about jazz."]
JUDGE = """
def length(prompts, responses, **columns):
    return [len(response) for response in responses]

def texts_only(prompts, responses, **columns):
    return [len(response) for p, response in zip(prompts, responses) if isinstance(p, str)]

def right(prompts, responses, answer):
    return [value for value, _ in zip(answer, responses, strict=True)]

def fails(prompts, responses, **columns):
    return [1 / 0]
"""
LENGTH = "reward.function=judge.py:length"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("judge.py").write_text(JUDGE)
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in PROMPTS]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write(run: Path, *words: str) -> list[dict]:
    common = ["prompts=prompts.jsonl", "max_new_tokens=8", "precision=fp32", "output=out.jsonl"]
    assert cli.main(["generate", str(run), *common, *words]) == 0
    return [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]


def last_line(capsys) -> str:
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def drawn(run_of, capsys) -> list[list[str]]:
    """Four responses to each prompt."""
    rows = write(run_of("sft"), "samples_per_prompt=4")
    assert last_line(capsys).startswith("12 responses, ")
    assert [row["prompt"][0]["content"] for row in rows] == [p for p in PROMPTS for _ in range(4)]
    texts = [row["response"] for row in rows]
    return [texts[first : first + 4] for first in (0, 4, 8)]


def test_samples_are_draws_of_their_own(drawn, run_of):
    assert all(len({*texts}) > 1 for texts in drawn)
    alone = write(run_of("sft"))
    assert [row["response"] for row in alone] == [texts[0] for texts in drawn]


def test_one_prompt_of_several_samples_is_printed_as_rows(run_of, capsys):
    words = ["prompt=Tea?", "samples_per_prompt=3", "max_new_tokens=4"]
    assert cli.main(["generate", str(run_of("sft")), *words]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in rows] == ["Tea?"] * 3


@pytest.mark.parametrize("batch_size", [1, 16])
def test_the_best_is_the_one_with_the_highest_score(batch_size, drawn, run_of, capsys):
    """With `batch_size=1`, prompts come in two portions."""
    words = ["samples_per_prompt=4", LENGTH, "keep=best", f"batch_size={batch_size}"]
    rows = write(run_of("sft"), *words)
    best = [max(texts, key=len) for texts in drawn]
    assert [row["completion"] for row in rows] == best
    assert [row["best_score"] for row in rows] == [len(text) for text in best]
    assert [row["prompt"][0]["content"] for row in rows] == PROMPTS
    every = [len(text) for texts in drawn for text in texts]
    before, after = sum(every) / 12, sum(map(len, best)) / 3
    line = last_line(capsys)
    assert line.startswith("12 responses to 3 prompts, ")
    assert f"; mean score {before:.4g}, of the best {after:.4g}, " in line


def test_a_ranking_has_every_response_with_its_score(drawn, run_of):
    rows = write(run_of("sft"), "samples_per_prompt=4", LENGTH)
    assert [row["responses"] for row in rows] == [[*dict.fromkeys(texts)] for texts in drawn]
    for row in rows:
        assert row["scores"] == [len(text) for text in row["responses"]]


def test_several_terms_are_added_up(run_of):
    terms = "reward.terms=[{function: judge.py:length, weight: 2}, {length_penalty: 1}]"
    [first, *_] = write(run_of("sft"), "samples_per_prompt=4", terms)
    for text, score in zip(first["responses"], first["scores"], strict=True):
        assert 2 * len(text) - 8 <= score <= 2 * len(text) - 1  # one to eight tokens


def test_a_reward_model_chooses(run_of):
    words = ["samples_per_prompt=4", f"reward.model={run_of('reward')}"]
    ranked = write(run_of("sft"), *words)
    best = write(run_of("sft"), *words, "keep=best")
    for row, one in zip(ranked, best, strict=True):
        place = row["scores"].index(max(row["scores"]))
        assert (one["completion"], one["best_score"]) == (
            row["responses"][place],
            row["scores"][place],
        )


@pytest.mark.parametrize(
    ("keep", "stage", "told"),
    [
        ("best", "sft", "out.jsonl: 3 of 3 training rows (prompt_completion)"),
        ("all", "reward", "out.jsonl: 3 of 3 training rows (ranked)"),
    ],
)
def test_a_stage_takes_the_rows_as_they_are(keep, stage, told, run_of, capsys):
    write(run_of("sft"), "samples_per_prompt=4", LENGTH, f"keep={keep}")
    words = ["data=out.jsonl", "max_steps=1", "output_dir=trained"]
    assert cli.main([stage, "model=tiny", *words]) == 0
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("keep", ["best", "all"])
def test_a_text_is_written_as_the_model_was_given_it(keep, run_of):
    """The judge still sees the text that stands in the file."""
    Path("prompts.jsonl").write_text('{"prompt": "Tea?"}\n')
    words = ["samples_per_prompt=4", "reward.function=judge.py:texts_only", f"keep={keep}"]
    [row] = write(run_of("sft"), *words, "template=always")
    assert row["prompt"] == [{"role": "user", "content": "Tea?"}]
    [row] = write(run_of("sft"), *words, "template=never")
    assert row["prompt"] == "Tea?"


def test_a_judge_is_given_the_other_columns_of_the_rows(run_of):
    """With `batch_size=1`, in two portions."""
    rows = [{"prompt": text, "answer": number} for number, text in enumerate(PROMPTS)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = "reward.function=judge.py:right"
    made = write(run_of("sft"), "samples_per_prompt=4", judge, "keep=best", "batch_size=1")
    assert [row["best_score"] for row in made] == [0, 1, 2]
    assert {*made[0]} == {"prompt", "completion", "best_score"}


# The rows, of responses made by hand


def answers(*texts: str, cut_off: tuple[int, ...] = ()) -> Responses:
    tokens = [[1] for _ in texts]
    ended = [place not in cut_off for place in range(len(texts))]
    return Responses(tokens, tokens, [*texts], ended)


def rewards():
    """1 where there is an `a`."""
    return load_combined_reward(RewardsConfig(pattern="a"), None, context())


def as_message(prompt):
    return (Message("user", prompt),)


def test_of_equal_responses_one_is_ranked():
    rows = RankedRows(rewards(), lambda prompt: prompt)
    made = rows.build(PromptSet(["p", "q"]), answers("a", "b", "a", "", "a", "c a", " ", "a"))
    assert made == [
        {"prompt": "p", "responses": ["a", "b"], "scores": [1.0, 0.0]},
        {"prompt": "q", "responses": ["a", "c a"], "scores": [1.0, 1.0]},
    ]
    assert rows.build(PromptSet(["r"]), answers("b", "b", cut_off=(0,))) == [
        {"prompt": "r", "responses": ["b"], "scores": [0.0]}
    ]
    assert rows.summary() == (
        "10 responses to 3 prompts, 9 ended by themselves; mean score 0.5, of the best 0.6667, "
        "2 of which ended by themselves; 2 blank responses left out; 3 repeated responses left "
        "out; 2 prompts with one response or equal scores, whose rows rlhf reward refuses"
    )


def test_the_first_of_equal_scores_is_the_best_and_no_blank_one():
    rows = BestRows(rewards(), as_message)
    message = [{"role": "user", "content": "p"}]
    assert rows.build(
        PromptSet(["p", "q"]), answers("", "b", "c", "\n", " ", "", cut_off=(1, 3))
    ) == [{"prompt": message, "completion": "b", "best_score": 0.0}]
    assert rows.summary() == (
        "6 responses to 2 prompts, 4 ended by themselves; mean score 0, of the best 0, "
        "0 of which ended by themselves; 4 blank responses left out; "
        "1 prompts without a row: all responses were blank"
    )


def test_there_may_be_no_row_at_all():
    rows = BestRows(rewards(), as_message)
    assert rows.build(PromptSet(["p"]), answers("", " ")) == []
    assert rows.summary().endswith("mean score 0; 2 blank responses left out; 1 prompts without a "
                                "row: all responses were blank")  # fmt: skip


# What is refused


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["samples_per_prompt=8", "keep=best"], "keep: got best, and nothing scores the responses; "
         "need reward.model, reward.classifier, reward.function, reward.url, a rule, or several in "
         "reward.terms. Try reward.model=runs/reward"),
        ([LENGTH], "samples_per_prompt: got 1, and the responses to a prompt are to be compared; "
         "need 2 or more. Try samples_per_prompt=8"),
        ([LENGTH, "keep=best"], "samples_per_prompt: got 1, and the responses to a prompt are to "
         "be compared; need 2 or more. Try samples_per_prompt=8"),
        (["samples_per_prompt=8", "temperature=0"], "samples_per_prompt: got 8 with "
         "sampling.temperature=0, at which all of them are the same; need a temperature > 0. Try "
         "temperature=1"),
        (["samples_per_prompt=8", "reward.clip=1"], "reward.model: none given; need something that "
         "scores responses. Try reward.model=runs/reward, or reward.function=judge.py:score"),
        (["prompt=['']", "samples_per_prompt=8"], "prompt: none given; need a prompt or a file of "
         "prompts."),
        (["samples_per_prompt=8", LENGTH, "reward.scale=running"], "reward.scale: got running, by "
         "which later scores are on another scale than earlier ones; generate writes all of them "
         "to one file. Try reward.scale=none"),
        (["samples_per_prompt=8", "keep=best", "reward.classifier=not/a/hub/id"],
         "reward.classifier: got not/a/hub/id; need a model folder, run folder or hub id; not "
         "found here."),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen_from_is_told_in_one_line(words, line, capsys):
    words = last_of_each("prompt=x", *words)
    assert cli.main(["generate", "tiny", *words]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert error.removeprefix("error: ").startswith(line)


def test_what_scores_is_opened_before_the_output(run_of, capsys):
    Path("out.jsonl").write_text("an older file")
    Path("broken.py").write_text("import nothing_of_this_name\nscore = None\n")
    words = ["prompts=prompts.jsonl", "samples_per_prompt=2", "reward.function=broken.py:score"]
    assert cli.main(["generate", str(run_of("sft")), *words, "output=out.jsonl"]) == 2
    assert "broken.py:score cannot be imported" in capsys.readouterr().err
    assert Path("out.jsonl").read_text() == "an older file"


def test_a_judge_that_fails_is_one_line(run_of, capsys):
    words = ["prompts=prompts.jsonl", "samples_per_prompt=2", "max_new_tokens=2"]
    judge = "reward.function=judge.py:fails"
    assert cli.main(["generate", str(run_of("sft")), *words, judge]) == 3
    assert "judge.py:fails raised ZeroDivisionError" in last_line(capsys)

"""`rlhf score`: the rows of a file with the scores of their responses."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from rlhf_cli import cli
from rlhf_cli.commands.score.config import ScoreConfig
from rlhf_cli.commands.score.rows import new_columns, read_rows
from rlhf_cli.data.prompts import PromptEncoder
from rlhf_cli.data.records.fields import Message
from rlhf_cli.errors import DataError
from rlhf_cli.resources import shipped_model
from rlhf_cli.rewards.config import RewardsConfig
from rlhf_cli.rewards.rewards import load_combined_reward
from rlhf_cli.rewards.samples import Samples
from tests.rewards.helpers import context

ASKED = [{"role": "user", "content": "Reply to Ana, who asks about tea."}]
REPLIES = ["Thank you, Ana.", "Tea is brewed from leaves. Take care.", "x"]
JUDGE = """
def length(prompts, responses, **columns):
    return [len(response) for response in responses]

def bonus(prompts, responses, bonus):
    return bonus

def picky(prompts, responses, **columns):
    return [float("nan") if response == "x" else 1 for response in responses]
"""
LENGTH = "reward.function=judge.py:length"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("judge.py").write_text(JUDGE)


def write_rows(*rows: object, name: str = "rows.jsonl") -> None:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    Path(name).write_text("".join(f"{line}\n" for line in lines))


def score(*words: str, code: int = 0) -> list[dict]:
    argv = ["score", *words, "data=rows.jsonl", "output=out.jsonl", "precision=fp32"]
    assert cli.main(argv) == code
    return (
        [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
        if not code
        else []
    )


def errors(capsys) -> str:
    return "\n".join(
        line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")
    )


def test_single_responses_of_every_layout_get_a_score_and_keep_their_columns(capsys):
    write_rows(
        {"id": 7, "prompt": "Tea?", "response": "Yes.", "made": None},
        {"prompt": "Tea?", "completion": "No, no."},
        {"prompt": ASKED, "completion": "Hm"},
    )
    rows = score(LENGTH)
    assert [row["score"] for row in rows] == [4, 7, 2]
    assert list(rows[0].items()) == [
        ("id", 7),
        ("prompt", "Tea?"),
        ("response", "Yes."),
        ("made", None),
        ("score", 4.0),
    ]
    told = capsys.readouterr().err
    assert "rows.jsonl: 3 of 3 rows (prompt_completion) to score" in told
    assert "3 rows -> out.jsonl" in told
    [line] = [line for line in told.splitlines() if line.startswith("score ")]
    assert line.split()[1:4] == ["3", "4.333", "2.517"]


def test_the_last_message_of_a_chat_is_scored():
    write_rows(
        {
            "messages": [
                *ASKED,
                {"role": "assistant", "content": "Yes."},
                *ASKED,
                {"role": "assistant", "content": "No"},
            ]
        },
        {"messages": ASKED},
    )
    assert [row["score"] for row in score(LENGTH)] == [2, None]


def test_pairs_have_both_scores_and_a_margin(capsys):
    write_rows(
        {"prompt": "Tea?", "chosen": "Yes.", "rejected": "No"},
        {"prompt": "Tea?", "chosen": "A", "rejected": "No"},
        {"prompt": "Tea?", "chosen": "So", "rejected": "No"},
    )
    rows = score(LENGTH)
    found = [(row["score_chosen"], row["score_rejected"], row["score_margin"]) for row in rows]
    assert found == [(4, 2, 2), (1, 2, -1), (2, 2, 0)]
    told = capsys.readouterr().err
    assert "accuracy" in told
    assert "0.3333 [0.0615, 0.7923]" in told
    assert [line.split()[1] for line in told.splitlines() if line.startswith("ties ")] == ["0.3333"]


def test_lists_of_responses_with_and_without_scores(capsys):
    write_rows({"prompt": "Tea?", "responses": ["A", "BCD"]})
    assert [row["scores"] for row in score(LENGTH)] == [[1, 3]]
    write_rows(
        {"prompt": "Tea?", "responses": ["A", "BCD"], "scores": [0, 1]},
        {"prompt": "Tea?", "responses": ["A", "BCD"], "scores": [1, 0]},
        {"prompt": "Tea?", "responses": ["A", "BCD"], "scores": [1, 1]},
    )
    capsys.readouterr()
    rows = score(LENGTH, "column=own")
    assert [row["owns"] for row in rows] == [[1, 3]] * 3
    assert [row["scores"] for row in rows] == [[0, 1], [1, 0], [1, 1]]
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("accuracy")]
    assert line.split()[1] == "0.5000"
    assert line.split()[-1] == "2"


def test_labels_are_compared_with_the_scores(capsys):
    texts = [("A", False), ("BC", True), ("BCD", False), ("BCDE", True)]
    write_rows(*({"prompt": "?", "completion": text, "label": label} for text, label in texts))
    score(LENGTH)
    assert "auc of labels  0.7500" in capsys.readouterr().err


def test_each_of_several_terms_has_a_column():
    terms = "reward.terms=[{function: judge.py:length, weight: 2}, {pattern: e, name: has_e}]"
    write_rows({"prompt": "Tea?", "chosen": "Yes.", "rejected": "No"})
    [row] = score(terms)
    assert (row["score_chosen"], row["score_chosen_length"], row["score_chosen_has_e"]) == (9, 4, 1)
    assert row["score_margin_has_e"] == 1
    assert new_columns("list", "own", ["a"]) == {"owns": ("", "")}


def test_other_columns_reach_the_function():
    write_rows(*({"prompt": "?", "response": "a", "bonus": value} for value in (3, 1)))
    assert [row["score"] for row in score("reward.function=judge.py:bonus")] == [3, 1]


def test_length_is_counted_in_tokens_of_the_named_model():
    write_rows({"prompt": "?", "response": "Tea is brewed."})
    [row] = score("reward.length_penalty=1", "tokenizer=tiny")
    tokenizer = AutoTokenizer.from_pretrained(shipped_model())
    assert row["score"] == -len(tokenizer("Tea is brewed.")["input_ids"]) - 1  # the end token


def policy_samples(run: Path) -> Samples:
    """As a rollout gives them to PPO: the policy's tokens, with the end token."""
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    encoder = PromptEncoder(tokenizer, as_message=False)
    prompt = (Message("user", ASKED[0]["content"]),)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in REPLIES]
    return Samples(
        [prompt] * len(REPLIES),
        REPLIES,
        [encoder.encode(prompt)] * len(REPLIES),
        [[*reply, tokenizer.eos_token_id] for reply in ids],
    )


def test_scores_are_those_of_ppo_for_responses_that_ended(run_of):
    run = run_of("reward")
    samples = policy_samples(run)
    policy = AutoTokenizer.from_pretrained(run / "model")
    reward = load_combined_reward(RewardsConfig(model=str(run)), policy, context())
    expected = reward.score(samples).total.tolist()
    write_rows(*({"prompt": ASKED, "response": text} for text in REPLIES))
    found = [row["score"] for row in score(str(run))]
    assert found == pytest.approx(expected, abs=1e-6)  # fp32, batched otherwise
    assert len({*found}) == 3


def test_scores_are_those_of_generate(run_of):
    write_rows({"prompt": ASKED})
    words = ["prompts=rows.jsonl", "max_new_tokens=8", "precision=fp32", "samples_per_prompt=4"]
    words += [LENGTH, "output=ranked.jsonl"]
    assert cli.main(["generate", str(run_of("sft")), *words]) == 0
    Path("ranked.jsonl").rename("rows.jsonl")
    [row] = score(LENGTH, "column=again")
    assert row["agains"] == row["scores"]


def test_accuracy_and_margin_are_those_of_evaluate(run_of, tmp_path):
    run = run_of("reward")
    texts = [*REPLIES, "Thanks. Tea is good.", "Take care, Ben."]
    pairs = [(a, b) for a in texts for b in texts if a != b]
    write_rows(*({"prompt": ASKED, "chosen": a, "rejected": b} for a, b in pairs))
    rows = score(str(run))
    words = ["data=rows.jsonl", "output=results.json", "precision=fp32"]
    assert cli.main(["evaluate", str(run), *words]) == 0
    results = json.loads(Path("results.json").read_text())["results"]
    value = {one["metric"]: one["value"] for one in results}
    margins = np.array([row["score_margin"] for row in rows])
    assert (margins > 0).mean() == pytest.approx(value["accuracy"])
    assert margins.mean() == pytest.approx(value["margin"], abs=1e-6)  # fp32, batched otherwise
    assert abs(margins).max() > 1e-4


def test_rows_are_printed_without_an_output(capsys):
    write_rows({"prompt": "Tea?", "response": "Yes."})
    assert cli.main(["score", LENGTH, "data=rows.jsonl"]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == 4


def test_a_slice_of_the_rows():
    write_rows(*({"prompt": "?", "response": "a" * n} for n in (1, 2, 3)))
    assert [row["score"] for row in score(LENGTH, "data.split=[1:]")] == [2, 3]


def test_refused_rows_stay_in_place_without_a_score(capsys):
    write_rows({"prompt": "?", "response": " ", "id": 1}, {"prompt": "?", "response": "a"})
    rows = score(LENGTH)
    assert rows[0] == {"prompt": "?", "response": " ", "id": 1, "score": None}
    assert rows[1]["score"] == 1
    assert "refused: 1 row, empty response; the first is rows.jsonl:1" in capsys.readouterr().err


def test_malformed_rows_end_the_command_unless_allowed(capsys):
    write_rows("{", {"prompt": "?", "response": "a"})
    score(LENGTH, code=3)
    assert "rows.jsonl:1: broken JSON" in errors(capsys)
    assert not Path("out.jsonl").exists()
    assert len(score(LENGTH, "data.max_bad_rows=1")) == 1


def test_a_row_without_a_finite_score_is_named(capsys):
    write_rows(*({"prompt": "Tea?", "response": text} for text in ("a", "b", "x")))
    score("reward.function=judge.py:picky", code=3)
    told = errors(capsys)
    assert "judge.py:picky gave nan for a response of rows.jsonl:3, whose prompt begins" in told


def test_a_column_that_is_there_is_not_replaced_unasked(capsys):
    write_rows({"prompt": "?", "completion": "abc", "score": 1})
    score(LENGTH, code=2)
    assert "column: got score, and rows.jsonl:1 has a column score already" in errors(capsys)
    assert [row["score"] for row in score(LENGTH, "replace=true")] == [3]
    [row] = score(LENGTH, "column=own")
    assert (row["score"], row["own"]) == (1, 3)


def test_half_a_surrogate_and_dates_can_be_written():
    write_rows('{"prompt": "?", "response": "a", "note": "\\ud800"}')
    assert score(LENGTH)[0]["note"] == "\ud800"


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["data=rows.jsonl"], "reward.model: none given"),
        ([LENGTH], "data.path: none given"),
        ([LENGTH, "data=rows.jsonl", "reward.scale=running"], "reward.scale: got running"),
        (["tiny", "data=rows.jsonl"], "reward.model: got tiny, which has random weights"),
        (["reward.length_penalty=1", "data=rows.jsonl"], "tokenizer: none given"),
        ([LENGTH, "data=rows.jsonl", "tokenizer=tiny"], "tokenizer: given without"),
        ([LENGTH, "data=rows.jsonl", "output=rows.jsonl"], "output: got rows.jsonl"),
        ([LENGTH, "data=rows.jsonl", "data.revision=main"], "data.revision: got main"),
        ([LENGTH, "data=rows.jsonl", "reward.skip_special_tokens=true"], "reward.skip_special"),
    ],
)
def test_a_wrong_configuration_is_refused(words, key, capsys):
    write_rows({"prompt": "?", "response": "a"})
    assert cli.main(["score", *words]) == 2
    assert errors(capsys).startswith(f"error: {key}")


def test_rows_without_responses_are_refused(capsys):
    write_rows({"prompt": "?"})
    score(LENGTH, code=3)
    assert "has prompt rows (prompt); score takes" in errors(capsys)
    write_rows({"prompt": "?", "response": ""})
    cfg = ScoreConfig(reward=RewardsConfig(length_penalty=1))
    cfg.data.path = "rows.jsonl"
    with pytest.raises(DataError, match="none of 1 rows has a response to score"):
        read_rows(cfg)

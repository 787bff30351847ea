"""`rlhf data convert`: files in, files out, and counts of what was left out."""

import json
from pathlib import Path

import pytest

from rlhf_cli import cli
from tests.data.toy import turns, write_jsonl

PAIR = {"prompt": turns("a"), "chosen": "b", "rejected": "c"}
SHP = {"history": "a", "human_ref_A": "b", "human_ref_B": "c", "labels": 0, "score_A": 2}
RANKING = {"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, 3, 1]}
TREE = [
    {"message_id": "a", "parent_id": None, "role": "prompter", "text": "Tea?"},
    {"message_id": "b", "parent_id": "a", "role": "assistant", "text": "Yes.", "rank": 0},
    {"message_id": "c", "parent_id": "a", "role": "assistant", "text": "No.", "rank": 1},
]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def convert(*words):
    return cli.main(["data", "convert", *words])


def converted(*words):
    assert convert("in.jsonl", "out.jsonl", *words) == 0
    return [json.loads(line) for line in Path("out.jsonl").read_text("utf-8").splitlines()]


def test_shp_becomes_a_pair_and_keeps_its_other_columns():
    write_jsonl(Path("in.jsonl"), SHP)
    [row] = converted("from=shp", "to=trl")
    assert row == {
        "prompt": [{"role": "user", "content": "a"}],
        "chosen": [{"role": "assistant", "content": "c"}],
        "rejected": [{"role": "assistant", "content": "b"}],
        "score_A": 2,
    }


def test_trees_become_rankings_or_conversations():
    write_jsonl(Path("in.jsonl"), *TREE)
    [row] = converted("from=oasst")
    assert row["scores"] == [0, -1]
    Path("out.jsonl").unlink()
    assert [row["messages"][-1]["content"] for row in converted("data.format=chat")] == [
        "Yes.",
        "No.",
    ]


def test_rankings_become_pairs_and_ties_are_counted(capsys):
    write_jsonl(Path("in.jsonl"), RANKING, {**RANKING, "scores": [1, 1, 1]})
    rows = converted("pairs=all", "to=trl")
    assert [(row["chosen"], row["rejected"], row["margin"]) for row in rows] == [
        ("b", "a", 2),
        ("b", "c", 2),
    ]
    err = capsys.readouterr().err
    assert "2 rows read, 2 written (2 preference) -> out.jsonl" in err
    assert "1 pair skipped" in err
    assert "1 row left out: all scores are equal; the first is in.jsonl:2" in err


def test_llama_factory_names_the_data_set(capsys):
    write_jsonl(Path("in.jsonl"), {**PAIR, "margin": 2})
    [row] = converted("to=llama_factory")
    assert row == {
        "instruction": "a",
        "input": "",
        "system": "",
        "history": [],
        "chosen": "b",
        "rejected": "c",
    }
    err = capsys.readouterr().err
    assert "1 row: margins are left out" in err
    entry = json.loads(err.rpartition("LLaMA-Factory: ")[2])
    assert entry["out"]["ranking"] is True
    assert entry["out"]["columns"]["prompt"] == "instruction"


def test_pairs_in_sharegpt_are_read_as_pairs_again():
    write_jsonl(Path("in.jsonl"), PAIR)
    [row] = converted("to=sharegpt")
    assert row["chosen"] == {"from": "gpt", "value": "b"}
    write_jsonl(Path("in.jsonl"), row)
    Path("out.jsonl").unlink()
    [again] = converted("from=llama_factory")
    assert again["prompt"] == PAIR["prompt"]
    assert again["chosen"] == [{"role": "assistant", "content": "b"}]


def test_columns_that_would_change_the_row_are_left_out_and_named(capsys):
    write_jsonl(Path("in.jsonl"), {**PAIR, "text": "t", "id": 1})
    [row] = converted()
    assert "text" not in row
    assert row["id"] == 1
    assert "columns left out: text (1)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "data convert: got nothing"),
        (["in.jsonl"], 2, "data convert: got in.jsonl alone"),
        (["in.jsonl", "a.jsonl", "b.jsonl"], 2, "data convert: got in.jsonl a.jsonl b.jsonl"),
        (["in.jsonl", "out.csv"], 2, "Try out.jsonl"),
        (["in.jsonl", "in.jsonl"], 2, "in.jsonl: is there already"),
        (["in.jsonl", "out.jsonl", "to=trll"], 2, "Try to=trl"),
        (["in.jsonl", "out.jsonl", "pairs=some"], 2, "pairs: got some; need one of none, all"),
        (["in.jsonl", "out.jsonl", "beta=1"], 2, "beta: no key of this action"),
        (["in.jsonl", "out.jsonl", "data.formt=chat"], 2, "did you mean data.format?"),
        (["in.jsonl", "out.jsonl", "from=shp"], 3, "from=shp needs history, human_ref_A"),
        (["in.jsonl", "out.jsonl", "to=alpaca"], 3, "none of 1 row can be written"),
        (["none.jsonl", "out.jsonl"], 3, "data.path: got none.jsonl"),
        (["bad.jsonl", "out.jsonl"], 3, "1 malformed of 2 rows"),
    ],
)
def test_wrong_words_are_named_and_nothing_is_written(words, code, message, capsys):
    write_jsonl(Path("in.jsonl"), PAIR)
    write_jsonl(Path("bad.jsonl"), PAIR, "{")
    assert convert(*words) == code
    assert message in capsys.readouterr().err
    assert not Path("out.jsonl").exists()


def test_malformed_rows_are_left_out_where_that_is_asked_for(capsys):
    write_jsonl(Path("in.jsonl"), PAIR, "{")
    assert len(converted("data.max_bad_rows=1")) == 1
    assert "1 row left out: broken JSON" in capsys.readouterr().err

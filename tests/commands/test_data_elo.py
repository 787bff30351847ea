"""`rlhf data elo`: rows in, rows with scores out."""

import json
from pathlib import Path

import pytest

from rlhf_cli import cli
from rlhf_cli.data.records.types import KINDS, RankedRecord
from rlhf_cli.data.sources.files import read_rows
from tests.data.toy import write_jsonl

ROW = {"id": "é", "prompt": "p", "responses": ["a", "b", "c"], "comparisons": [[0, 1, 0]]}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def elo(*words):
    return cli.main(["data", "elo", *words])


def rows(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_rows_keep_what_they_have_and_get_scores(capsys):
    write_jsonl(Path("in.jsonl"), {**ROW, "scores": [9, 9, 9]}, ROW)
    assert elo("in.jsonl", "output=new/out.jsonl") == 0
    rated = {
        "scores": [1516.0, 1484.0, 1500.0],
        "comparisons_count": [1, 1, 0],
        "uncertainty": [0.0, 0.0, None],
    }
    assert rows("new/out.jsonl") == [{**ROW, **rated}] * 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        "2 rows, 6 responses, 2 comparisons; scores 1484 to 1516, uncertainty 0 in the mean; "
        "2 responses never compared -> new/out.jsonl\n"
    )


def test_without_output_the_rows_go_to_the_screen_and_are_a_ranking(capsys):
    write_jsonl(Path("in.jsonl"), ROW)
    assert elo("in.jsonl") == 0
    Path("out.jsonl").write_text(capsys.readouterr().out, encoding="utf-8")
    [raw] = read_rows([Path("out.jsonl")])
    kind = next(kind for kind in KINDS if kind.record is RankedRecord)
    assert kind.parse(raw.columns()) == RankedRecord("p", ("a", "b", "c"), (1516, 1484, 1500))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"comparisons": []}, "comparisons: got an empty list; need a list with at least one item"),
        ({"comparisons": None}, "comparisons: got null; need a list with at least one item"),
        ({"responses": "a"}, 'responses: got "a"; need a list with at least one item'),
        (
            {"comparisons": [[0, 1, 0], [0, 3, 0]]},
            "comparisons[1]: got [0, 3, 0]; need i and j to be two of 3 responses, 0 to 2",
        ),
        (
            {"comparisons": [[-1, 1, 1]]},
            "comparisons[0]: got [-1, 1, 1]; need i and j to be two of 3 responses, 0 to 2",
        ),
        (
            {"comparisons": [[1, 1, 1]]},
            "comparisons[0]: got [1, 1, 1]; need i and j to be two of 3 responses, 0 to 2",
        ),
        (
            {"comparisons": [[0, 1, 2]]},
            "comparisons[0]: got [0, 1, 2]; need the winner to be 0, 1 or -1 (a tie)",
        ),
        (
            {"comparisons": [[0, 1]]},
            "comparisons[0]: got [0, 1]; need [i, j, winner], three whole numbers",
        ),
        (
            {"comparisons": [[0, 1, True]]},
            "comparisons[0]: got a list of 3; need [i, j, winner], three whole numbers",
        ),
        ({"comparisons": ["a"]}, 'comparisons[0]: got "a"; need [i, j, winner], three whole'),
    ],
)
def test_a_row_that_cannot_be_rated_is_named_and_nothing_is_written(change, message, capsys):
    write_jsonl(Path("in.jsonl"), ROW, {**ROW, **change})
    assert elo("in.jsonl", "output=out.jsonl") == 3
    head, line = capsys.readouterr().err.splitlines()
    assert head == "error: 1 of 2 rows cannot be rated"
    assert line.startswith(f"error:   in.jsonl:2: {message}")
    assert not Path("out.jsonl").exists()


def test_missing_columns_and_broken_lines_are_named_at_most_five(capsys):
    write_jsonl(Path("in.jsonl"), {"responses": ["a"]}, *["{"] * 6)
    assert elo("in.jsonl") == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "error:   in.jsonl:1: no column comparisons; found responses"
    assert lines[2].startswith("error:   in.jsonl:2: broken JSON: ")
    assert lines[6:] == ["error:   and 2 more"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "data: got nothing; need one of show, "),
        (["ello"], 2, "data: got ello; need one of show, "),
        (["elo"], 2, "data elo: got nothing; need one file and at most one output=FILE."),
        (["elo", "a", "b"], 2, "data elo: got a b; need one file and at most one output=FILE."),
        (["elo", "in.jsonl", "output="], 2, "data elo: got in.jsonl output=; need one file"),
        (["elo", "in.jsonl", "output=a.csv"], 2, "output: got a.csv; need a .jsonl file."),
        (["elo", "in.jsonl", "output=./in.jsonl"], 2, "output: in.jsonl is the file that is read;"),
        (["elo", "none.jsonl"], 3, "data elo: none.jsonl is no file; need one with responses and"),
        (["elo", "empty.jsonl"], 3, "empty.jsonl: the file is empty; need at least one row"),
        (["elo", "in.jsonl", "output=in.jsonl/x.jsonl"], 3, "output: in.jsonl/x.jsonl cannot be"),
    ],
)
def test_wrong_words_are_one_line(words, code, message, capsys):
    write_jsonl(Path("in.jsonl"), ROW)
    Path("empty.jsonl").touch()
    assert cli.main(["data", *words]) == code
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_the_scores_agree_with_the_share_of_games_won(real_data, capsys):
    file = real_data / "ranked_answers.jsonl"
    assert elo(str(file), "output=out.jsonl") == 0
    right = pairs = 0
    for given, rated in zip(rows(file), rows("out.jsonl"), strict=True):
        for i in range(4):
            for j in range(i):
                apart = given["scores"][i] - given["scores"][j]
                pairs += apart != 0
                right += apart * (rated["scores"][i] - rated["scores"][j]) > 0
    assert right == pairs  # everyone met everyone once

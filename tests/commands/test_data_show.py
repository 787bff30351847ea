"""`rlhf data show` and `stats`: what the trainer sees of each row."""

import json
from pathlib import Path

import pytest

from rlhf_cli import cli
from rlhf_cli.commands.data.inputs import STAGE_OF_KIND, first_kind
from rlhf_cli.data.sources.files import read_rows
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.resources import SHIPPED
from tests.data.toy import turns, write_jsonl

PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
CHAT = {"messages": turns("hi", "yo", "so", "no")}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def data(*words):
    return cli.main(["data", *words])


def shown(capsys, *words):
    assert data("show", *words, "format=json") == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_row_has_the_ids_and_mask_of_training(capsys):
    from rlhf_cli.data.config import DataConfig
    from rlhf_cli.data.dataset import load_examples
    from rlhf_cli.stages.records import SFT_RECORDS

    write_jsonl(Path("in.jsonl"), CHAT)
    [row] = shown(capsys, "in.jsonl")
    tokenizer = load_tokenizer(ModelConfig(path=SHIPPED))
    examples, _ = load_examples(DataConfig(path="in.jsonl"), "sft", tokenizer, SFT_RECORDS)
    [tokens] = row["rows"]
    assert tokens["ids"] == examples.tokens.tolist()
    assert tokens["loss_mask"] == examples.loss_mask.astype(int).tolist()
    assert tokens["text"] == tokenizer.decode(tokens["ids"])
    assert "".join(span["text"] for span in tokens["spans"]) == tokens["text"]
    trained = [span["text"] for span in tokens["spans"] if span["trained"]]
    assert trained == ["yo", "<|end|>", "no", "<|end|>"]
    assert (row["location"], row["stage"], row["kind"]) == ("in.jsonl:1", "sft", "chat")


@pytest.mark.parametrize(
    ("row", "stage"),
    [
        (PAIR, "dpo"),
        (CHAT, "sft"),
        ({"prompt": "p", "completion": "c"}, "sft"),
        ({"prompt": "p", "completion": "c", "label": True}, "bco"),
        ({"prompt": "p", "completion": "c", "score": 1}, "reward"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1, 2]}, "reward"),
        ({"text": "t", "label": 1}, "reward"),
        ({"text": "t"}, "pretrain"),
        ({"prompt": "p"}, "ppo"),
    ],
)
def test_the_stage_is_guessed_from_the_rows(row, stage):
    write_jsonl(Path("in.jsonl"), row)
    assert STAGE_OF_KIND[first_kind(["in.jsonl"])] == stage


def test_a_guess_is_said(capsys):
    write_jsonl(Path("in.jsonl"), PAIR)
    assert data("show", "in.jsonl", "format=json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["stage"] == "dpo"
    assert "stage: dpo, guessed" in printed.err


def test_keys_of_the_stage_decide_what_is_shown(capsys):
    write_jsonl(Path("in.jsonl"), {**PAIR, "prompt": "a b c d e f g h i j"})
    [row] = shown(capsys, "in.jsonl", "stage=dpo", "data.max_length=8", "template=always")
    chosen = row["rows"][0]
    assert chosen["tokens"] == 8
    assert chosen["cut_start"] > 0
    assert chosen["cut_start_text"].startswith("<|user|>a b")
    assert chosen["text"].endswith("<|assistant|>b<|end|>")
    [row] = shown(capsys, "in.jsonl", "stage=dpo", "data.max_length=8", "data.truncation=refuse")
    assert "data.max_length=8" in row["problem"]


def test_a_recipe_shows_its_own_rows(capsys):
    assert {row["file"] for row in shown(capsys, "config=tiny/dpo", "rows=2")} == {
        "dpo_train.jsonl"
    }


def test_refused_and_malformed_rows_are_shown_with_the_reason(capsys):
    write_jsonl(Path("in.jsonl"), PAIR, {**PAIR, "chosen": " "}, "{", {**PAIR, "rejected": "b"})
    assert data("show", "in.jsonl", "rows=2..4") == 0
    out = capsys.readouterr().out
    assert "refused: empty response" in out
    assert "malformed: broken JSON" in out
    assert "refused: chosen equals rejected" in out
    assert shown(capsys, "in.jsonl", "row=2")[0]["problem"] == "empty response"


def test_trained_tokens_are_marked_and_text_controls_nothing(capsys):
    write_jsonl(Path("in.jsonl"), {"prompt": "a\x1b[31m\n", "chosen": " b", "rejected": "c\u202e"})
    assert data("show", "in.jsonl") == 0
    out = capsys.readouterr().out
    assert "a\\x1b[31m↵\n" in out
    assert "[[·b<|end|>]]" in out
    assert "c\\u202e" in out
    assert "\x1b" not in out


def test_packed_rows_stand_under_their_example(capsys):
    write_jsonl(Path("in.jsonl"), *[{"prompt": "p", "completion": "c"}] * 5)
    rows = shown(capsys, "in.jsonl", "row=3", "data.packing=true", "data.max_length=6")
    assert [(row["line"], row["example"]) for row in rows] == [(3, 2), (4, 2)]
    assert data("show", "in.jsonl", "row=3", "data.packing=true", "data.max_length=6") == 0
    assert "packed example 2: 6 tokens" in capsys.readouterr().out


@pytest.mark.parametrize("packing", ["true", "false"])
def test_documents_are_shown_in_pieces(packing, capsys):
    write_jsonl(Path("in.jsonl"), {"text": "x " * 100})
    words = ("in.jsonl", "data.max_length=8", f"data.packing={packing}")
    assert [row["example"] for row in shown(capsys, *words)] == [1, 2, 3]
    assert len(shown(capsys, *words, "full=true")) > 3


def test_ppo_prompts_leave_room_for_the_response(capsys):
    write_jsonl(Path("in.jsonl"), {"prompt": "a b c d e f"})
    words = ("in.jsonl", "data.max_length=9", "sampling.max_new_tokens=5")
    [row] = shown(capsys, *words)
    assert row["rows"][0]["tokens"] == 4
    assert not any(row["rows"][0]["loss_mask"])
    assert data("show", *words) == 0
    assert "up to 5 to be generated" in capsys.readouterr().out


def test_the_page_is_one_escaped_file(capsys):
    write_jsonl(Path("in.jsonl"), {**PAIR, "prompt": "<script>x</script>", "chosen": "\x1bb"})
    assert data("show", "in.jsonl", "output=out.html") == 0
    page = Path("out.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;x" in page
    assert "\\x1bb" in page
    assert "http" not in page
    assert data("show", "in.jsonl", "format=html") == 0
    assert capsys.readouterr().out == page


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "data: no file given"),
        (["in.jsonl", "stage=nonsense"], 2, "stage: got nonsense; need one of pretrain"),
        (["in.jsonl", "stage=dpoo"], 2, "Try stage=dpo"),
        (["in.jsonl", "fromat=json"], 2, "fromat: no such option; did you mean format?"),
        (["in.jsonl", "format=jsn"], 2, "format: got jsn; need one of terminal, json, html"),
        (["in.jsonl", "data.max_lenght=9"], 2, "did you mean data.max_length?"),
        (["in.jsonl", "beta=-1"], 2, "beta: got -1"),
        (["in.jsonl", "row=9"], 2, "row: got 9, but in.jsonl has 2 rows, on lines 1 to 2"),
        (["in.jsonl", "row=x"], 2, "row: got x"),
        (["in.jsonl", "rows=3..1"], 2, "rows: got 3..1"),
        (["in.jsonl", "row=1", "rows=2"], 2, "row: given beside rows=2"),
        (["in.jsonl", "-m"], 2, "-m: a switch of runs"),
        (["in.jsonl", "output=a.txt"], 2, "output: got a.txt"),
        (["in.jsonl", "stage=sft"], 3, "sft takes"),
        (["none.jsonl"], 3, "data.path: got none.jsonl"),
        (["empty.jsonl"], 3, "empty.jsonl: the file is empty"),
        (["binary.jsonl"], 3, "binary.jsonl: no row can be read"),
        (["folder"], 3, "the folder is empty"),
    ],
)
def test_wrong_words_are_one_line(words, code, message, capsys):
    write_jsonl(Path("in.jsonl"), PAIR, PAIR)
    Path("empty.jsonl").touch()
    Path("binary.jsonl").write_bytes(bytes(range(128, 256)) * 4)
    Path("folder").mkdir()
    assert data("show", *words) == code
    assert message in capsys.readouterr().err


def test_a_pipe_is_refused(capsys):
    import os

    os.mkfifo("in.jsonl")
    assert data("show", "in.jsonl", "stage=dpo") == 3
    assert "data.path: got in.jsonl" in capsys.readouterr().err


def stats(capsys, *words):
    assert data("stats", *words, "format=json") == 0
    return json.loads(capsys.readouterr().out)


def test_statistics_count_rows_tokens_and_what_is_cut(capsys):
    long = {**PAIR, "prompt": "a " * 30, "chosen": "b b b", "margin": 2}
    write_jsonl(Path("in.jsonl"), PAIR, long, {**PAIR, "chosen": ""}, "{")
    found = stats(capsys, "in.jsonl", "data.max_length=16")
    assert (found["rows"], found["kept"], found["malformed"]) == (4, 2, 1)
    assert found["kinds"] == {"preference": 2}
    assert {(one["rows"], one["first"]) for one in found["left_out"]} == {
        (1, "in.jsonl:3"),
        (1, "in.jsonl:4"),
    }
    rows = shown(capsys, "in.jsonl", "rows=2")
    counts = [one["tokens"] for row in rows for one in row["rows"]]
    assert found["lengths"]["tokens"]["max"] == max(counts)
    assert found["lengths"]["chosen"]["max"] == counts[2] - rows[1]["rows"][0]["prompt_tokens"]
    assert (found["truncated"], found["token_rows"]) == (2, 4)
    assert found["longer"] == {"equal": 1, "chosen": 1}
    assert found["numbers"]["margin"]["mean"] == 2
    assert data("stats", "in.jsonl", "data.max_length=16") == 0
    out = capsys.readouterr().out
    assert "data.max_length=16" in out
    assert "4 rows read for dpo, 2 kept" in out


def test_statistics_balance_labels_and_turns(capsys):
    row = {"prompt": turns("hi"), "completion": "c"}
    write_jsonl(Path("in.jsonl"), *[{**row, "label": i > 0} for i in range(4)])
    found = stats(capsys, "in.jsonl")
    assert found["labels"] == {"undesirable": 1, "desirable": 3}
    assert found["messages"] == {"1": 4}


def test_a_row_of_the_file_is_found_by_its_line(capsys):
    Path("in.csv").write_text('prompt,completion\n"a\nb",c\nd,e\n', encoding="utf-8")
    lines = [raw.line for raw in read_rows([Path("in.csv")])]
    assert [row["line"] for row in shown(capsys, "in.csv")] == lines
    [row] = shown(capsys, "in.csv", f"row={lines[1]}")
    assert row["rows"][0]["text"].startswith("d")

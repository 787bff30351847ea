"""Rating the rows of a file, and the agreement of raters."""

import io
import json
import os
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from rlhf_cli import cli
from rlhf_cli.commands.label.keys import press_key
from rlhf_cli.errors import DataError
from rlhf_cli.runs.appended_rows import append_row, remove_row, require_appendable
from tests.commands.conftest import FAST

PAIRS = [
    {"id": 1, "prompt": "What is 2+2?", "chosen": "4", "rejected": "5"},
    {"id": 2, "prompt": "Name a colour.", "chosen": "Blue", "rejected": "Dog", "margin": 2},
    {"id": 3, "prompt": "Name an animal.", "chosen": "Cat", "rejected": "Red"},
]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("pairs.jsonl", PAIRS)


@pytest.fixture
def label(monkeypatch, capsys):
    """Rates a file with one key a line, and returns what was shown."""

    def run(keys: str, *words: str, code: int = 0) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(keys)))
        assert cli.main(["label", *words]) == code
        captured = capsys.readouterr()
        return captured.out + captured.err

    return run


def write(name: str, rows: list[dict]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def order_of(shown: str, *answers: str) -> list[str]:
    """The answers in the order in which they were shown."""
    return sorted(answers, key=shown.index)


def test_a_decision_about_a_pair_is_a_row_of_dpo(label):
    shown = label("1q", "pairs.jsonl", "rater=ann")
    first, second = order_of(shown.partition("better:")[0].partition("2+2?")[2], "4", "5")
    row = rows("pairs.labelled.jsonl")[0]
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("What is 2+2?", first, second)
    assert (row["id"], row["rater"]) == (1, "ann")
    assert len(row["item"]) == 16
    assert "chosen" not in shown.partition("row added")[0]


def test_the_seed_decides_the_order_of_the_answers(label):
    write("many.jsonl", [{**PAIRS[0], "prompt": f"{i}?"} for i in range(20)])
    for seed in ("seed=0", "seed=0", "seed=1"):
        label("1" * 20, "many.jsonl", seed, f"output={len(os.listdir())}.jsonl")
    outputs = sorted((n for n in os.listdir() if n[0].isdigit()), key=lambda n: int(n[:-6]))
    chosen = [[row["chosen"] for row in rows(name)] for name in outputs]
    assert chosen[0] == chosen[1] != chosen[2]
    assert 3 < chosen[0].count("4") < 17


def test_rating_continues_where_it_stopped(label):
    assert "3 items to rate, 0 done" in label("1sq", "pairs.jsonl", "rater=ann")
    shown = label("2", "pairs.jsonl", "rater=ann")
    assert "1 done by ann" in shown
    assert "2+2" not in shown
    assert "2 of 3" in shown
    assert "1 item left" in shown
    assert "0 items left" not in label("1", "pairs.jsonl", "rater=ann")
    assert "all done" in label("", "pairs.jsonl", "rater=ann")
    assert [row["id"] for row in rows("pairs.labelled.jsonl")] == [1, 2, 3]
    assert "0 done by ben" in label("q", "pairs.jsonl", "rater=ben")


def test_a_tie_is_kept_where_no_method_reads_it(label):
    shown = label("=1q", "pairs.jsonl", "rater=ann")
    assert "1 tie in" in shown
    assert [row["id"] for row in rows("pairs.labelled.jsonl")] == [2]
    tie = rows("pairs.labelled.ties.jsonl")[0]
    assert tie["responses"] == ["4", "5"]
    assert "chosen" not in tie
    assert "2 done by ann" in label("q", "pairs.jsonl", "rater=ann")


def test_undo_takes_back_decisions_ties_and_skips(label):
    shown = label("1=suuuu2q", "pairs.jsonl", "rater=ann")
    assert "nothing is left" in shown
    assert "nothing to undo" in shown
    found = rows("pairs.labelled.jsonl")
    assert [row["id"] for row in found] == [1]
    assert not Path("pairs.labelled.ties.jsonl").exists()
    assert shown.count("1 of 3") == 3


def test_a_ranking_is_built_from_the_best_answer_on(label):
    write("many.jsonl", [{"prompt": "Hi", "responses": ["aa", "bb", "cc"], "id": 7}])
    shown = label("31", "many.jsonl")
    order = order_of(shown.partition("best:")[0].partition("Hi")[2], "aa", "bb", "cc")
    row = rows("many.labelled.jsonl")[0]
    ranked = sorted(zip(row["scores"], row["responses"], strict=True), reverse=True)
    assert [answer for _, answer in ranked] == [order[2], order[0], order[1]]
    assert "best: 1, 2 or = equal" in shown
    label("2u2=", "many.jsonl", "output=b.jsonl")
    assert sorted(rows("b.jsonl")[0]["scores"]) == [0, 0, 2]
    label("=", "many.jsonl", "output=c.jsonl")
    assert rows("c.ties.jsonl")[0]["responses"] == ["aa", "bb", "cc"]


def test_single_answers_and_chats_are_good_or_bad(label):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    write("chats.jsonl", [{"messages": chat}, {"messages": [*chat, *chat]}])
    label("gb", "chats.jsonl")
    one, other = rows("chats.labelled.jsonl")
    assert (one["label"], other["label"]) == (True, False)
    assert (one["prompt"], one["completion"]) == (chat[:1], chat[1:])
    assert len(other["prompt"]) == 3
    write("generated.jsonl", [{"prompt": "Hi", "response": "Hello"}])
    label("2", "generated.jsonl", "columns={completion: response}")
    assert rows("generated.labelled.jsonl")[0]["label"] is False


def test_rated_rows_train(label):
    label("112", "pairs.jsonl")
    write(
        "answers.jsonl", [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
    )
    label("121", "answers.jsonl")
    words = [*FAST, "max_steps=1"]
    words.remove("max_steps=2")
    for stage, data in (("dpo", "pairs.labelled.jsonl"), ("bco", "answers.labelled.jsonl")):
        assert cli.main([stage, *words, f"data={data}", f"output_dir={stage}"]) == 0


def test_the_shipped_pairs_can_be_tried(label):
    assert "tiny.labelled.jsonl" in label("1q", "tiny")
    assert {"prompt", "chosen", "rejected"} <= set(rows("tiny.labelled.jsonl")[0])


def test_control_characters_of_a_file_are_escaped(label):
    write("x.jsonl", [{"prompt": "a\x1b[2J", "chosen": "\x1b]0;t\x07", "rejected": "c"}])
    shown = label("q", "x.jsonl")
    assert "\x1b" not in shown
    assert "\\x1b[2J" in shown


def test_files_that_cannot_be_rated_or_written_are_refused(label):
    os.mkfifo("pipe.jsonl")
    assert "need a file" in label("", "pipe.jsonl", code=3)
    assert "need a regular file" in label("", "pairs.jsonl", "output=pipe.jsonl", code=3)
    assert "need a file" in label("", "missing.jsonl", code=3)
    assert "file: none given" in label("", code=2)
    write("prompts.jsonl", [{"prompt": "Hi"}])
    assert "label takes" in label("", "prompts.jsonl", code=3)
    Path("half.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejec')
    assert "half.jsonl:1: broken JSON" in label("", "half.jsonl", code=3)
    assert "half.jsonl:1: broken JSON" in label("", "pairs.jsonl", "output=half.jsonl", code=3)
    write("other.jsonl", [{"text": "a"}])
    assert "other.jsonl:1 has the columns" in label("", "pairs.jsonl", "output=other.jsonl", code=3)
    assert "the file that is read" in label("", "pairs.jsonl", "output=pairs.jsonl", code=2)
    assert "need a name that ends" in label("", "pairs.jsonl", "output=x", code=2)
    assert "need one of" in label("7", "pairs.jsonl", code=3)


def test_a_key_press_needs_no_enter():
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("x\r9G")
        assert press_key("? ", ["g", "q"]) == "g"
        keys.send_text("=")
        assert press_key("? ", ["="]) == "="
        keys.send_text("\x04")
        assert press_key("? ", ["g"]) == "q"
        keys.send_text("\x03")
        with pytest.raises(KeyboardInterrupt):
            press_key("? ", ["g"])


def agreement(capsys, *words: str) -> dict:
    assert cli.main(["agreement", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_agreement_of_two_raters_does_not_depend_on_the_order_shown(label, capsys):
    label("111", "pairs.jsonl", "rater=ann")
    label("222", "pairs.jsonl", "rater=ben", "output=ben.jsonl", "seed=5")
    ann = {row["id"]: row["chosen"] for row in rows("pairs.labelled.jsonl")}
    ben = {row["id"]: row["chosen"] for row in rows("ben.jsonl")}
    [pair] = agreement(capsys, "pairs.labelled.jsonl", "ben.jsonl")["pairs"]
    assert pair["raters"] == ["ann", "ben"]
    assert pair["raw"]["value"] == pytest.approx(sum(ann[i] == ben[i] for i in ann) / 3)
    assert sum(map(sum, pair["confusion"])) == pair["items"] == 3


def test_agreement_reads_ties_rankings_labels_and_files_without_raters(label, capsys):
    label("1=1", "pairs.jsonl", "rater=ann")
    [pair] = agreement(capsys, "pairs.labelled.jsonl", "pairs.jsonl")["pairs"]
    assert pair["raters"] == ["ann", "pairs.jsonl"]
    assert pair["items"] == 3
    assert "tie" in pair["categories"]
    ranked = {"prompt": "Hi", "responses": ["a", "b", "c"], "scores": [3, 2, 1]}
    write("r1.jsonl", [{**ranked, "rater": name} for name in ("x", "y")])
    write("r2.jsonl", [{**ranked, "scores": [3, 1, 2], "rater": "z"}])
    found = agreement(capsys, "r1.jsonl", "r2.jsonl")
    third = pytest.approx(2 / 3)
    assert [pair["raw"]["value"] for pair in found["pairs"]] == [1, third, third]
    assert found["krippendorff_alpha"]["n"] == 3
    assert cli.main(["agreement", "r1.jsonl", "r2.jsonl"]) == 0
    assert "Krippendorff's α" in capsys.readouterr().out


def test_agreement_needs_two_raters_of_the_same_answers(capsys):
    write("a.jsonl", [{**PAIRS[0], "rater": "a"}])
    write("b.jsonl", [{**PAIRS[1], "rater": "b"}])
    write("c.jsonl", [{"prompt": "a", "completion": "b"}])
    for words, code, need in (
        ((), 2, "need files"),
        (("a.jsonl",), 3, "need two raters"),
        (("a.jsonl", "b.jsonl"), 3, "no answers in common"),
        (("a.jsonl", "c.jsonl"), 3, "c.jsonl:1: has no decision"),
        (("a.jsonl", "missing.jsonl"), 3, "no such file"),
    ):
        assert cli.main(["agreement", *words]) == code
        assert need in capsys.readouterr().err


def test_rows_are_appended_whole_and_removed_again(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    first, second = append_row(path, {"a": 1}), append_row(path, {"a": "é\ud800"})
    path.chmod(0o640)
    assert remove_row(path, first)
    assert not remove_row(path, first)
    assert path.read_bytes() == second
    assert path.stat().st_mode & 0o777 == 0o640
    path.write_bytes(b'{"a": 1}')  # a last line without its end
    append_row(path, {"b": 2})
    assert path.read_text() == '{"a": 1}\n{"b": 2}\n'
    assert os.listdir(path.parent) == ["rows.jsonl"]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    append_row(path, {"a": 1})

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left"):
        append_row(path, {"b": 2})
    assert path.read_text() == '{"a": 1}\n'
    with pytest.raises(DataError, match="need a regular file"):
        require_appendable(tmp_path)

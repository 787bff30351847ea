"""The data pipeline: from a path to records and examples, with the cache."""

import numpy as np
import pytest

from rlhf_cli import cache
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.dataset import has_chat_records, iter_texts, load_eval_examples, load_examples
from rlhf_cli.data.examples import ARRAYS
from rlhf_cli.data.records.types import KINDS, ChatRecord, PromptCompletionRecord, TextRecord
from rlhf_cli.data.report import DataReport
from rlhf_cli.errors import DataError
from rlhf_cli.resources import cache_folder
from tests.data.toy import CHATML, EOS, A, B, C, D, E, toy_tokenizer, turns, write_jsonl

SFT = (PromptCompletionRecord, ChatRecord)
ANY = tuple(kind.record for kind in KINDS)


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def rows(tmp_path):
    """Three rows, one of them without a response."""
    return write_jsonl(
        tmp_path / "r.jsonl",
        {"prompt": "a", "completion": "b", "id": 1},
        {"prompt": "a", "completion": "", "id": 2},
        {"prompt": "cd", "completion": "e", "id": 3},
    )


def load(path, tokenizer=None, **settings):
    return load_examples(
        DataConfig(path=str(path), **settings), "sft", tokenizer or toy_tokenizer(), SFT
    )


def same(left, right):
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in ARRAYS)


def test_examples_are_flat_and_know_their_lines(rows):
    examples, _ = load(rows)
    assert examples.tokens.tolist() == [A, B, EOS, C, D, E, EOS]
    assert examples.loss_mask.tolist() == [False, True, True, False, False, True, True]
    assert examples.row_starts.tolist() == [0, 3, 7]
    assert examples.example_starts.tolist() == [0, 1, 2]
    assert [examples.location(i) for i in range(len(examples))] == ["r.jsonl:1", "r.jsonl:3"]
    assert [getattr(examples, name).dtype for name in ARRAYS] == [
        *(np.int32, np.bool_, np.int64, np.int64, np.int64)
    ]


def test_the_report_counts_what_was_read_kept_and_refused(rows):
    _, report = load(rows)
    assert report.lines() == [
        "r.jsonl: 2 of 3 rows (prompt_completion), 2 examples, 7 tokens, 4 trained; "
        "row length 4 median, 4 p90, 4 p99, 4 longest",
        "  refused: 1 row, empty response; the first is r.jsonl:2",
        "  columns not read: id",
    ]
    assert DataReport.from_dict(report.to_dict()) == report


def test_rows_of_several_files_know_their_file(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    write_jsonl(folder / "b.jsonl", {"prompt": "c", "completion": "d"})
    write_jsonl(folder / "a.jsonl", {"prompt": "a", "completion": "b"})
    (folder / "notes.md").touch()
    examples, report = load(folder)
    assert [examples.location(i) for i in (0, 1)] == ["a.jsonl:1", "b.jsonl:1"]
    assert report.lines()[-1] == "  files not read: notes.md"


def test_packing_puts_several_rows_into_an_example(rows):
    examples, report = load(rows, packing=True, max_length=7)
    assert examples.example_starts.tolist() == [0, 2]
    assert (report.kept, report.examples) == (2, 1)


def test_no_row_left_is_an_error_that_says_why(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", {"prompt": "a", "completion": ""}, "{")
    with pytest.raises(DataError) as error:
        load(path, max_bad_rows=1)
    assert str(error.value).splitlines() == [
        "r.jsonl: none of 2 rows can be trained on",
        "  malformed: 1 row; the first is r.jsonl:2: broken JSON: Expecting property name enclosed "
        "in double quotes at column 2",
        "  refused: 1 row, empty response; the first is r.jsonl:1",
    ]


def test_the_second_time_the_tokens_come_from_the_cache(rows, capsys, monkeypatch):
    examples, report = load(rows)
    assert "r.jsonl: tokenized in " in capsys.readouterr().err
    monkeypatch.setattr("rlhf_cli.data.dataset._build", None)
    again, report_again = load(rows)
    assert "r.jsonl: tokens from the cache" in capsys.readouterr().err
    assert isinstance(again.tokens, np.memmap)
    assert same(again, examples)
    assert (again.files, report_again) == (examples.files, report)


def chat_without_line_end():
    return toy_tokenizer(CHATML.replace("\n", ""))


def two_end_tokens():
    return toy_tokenizer(eos_token="<turn>")


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 7},
        {"train_on": "all"},
        {"packing": True},
        {"truncation": "refuse"},
        {"tokenizer": chat_without_line_end()},
        {"tokenizer": two_end_tokens()},
        {"tokenizer": toy_tokenizer(adds_bos=True)},
    ],
)
def test_what_changes_the_tokens_misses_the_cache(rows, capsys, change):
    load(rows)
    capsys.readouterr()
    load(rows, **change)
    assert "tokenized in" in capsys.readouterr().err


def test_changed_content_misses_the_cache(rows, capsys):
    load(rows)
    rows.write_text(rows.read_text().replace('"e"', '"d"'))
    examples, _ = load(rows)
    assert capsys.readouterr().err.count("tokenized in") == 2
    assert examples.tokens.tolist()[-2:] == [D, EOS]


def test_what_does_not_change_the_tokens_does_not_miss_the_cache(rows, capsys):
    load(rows)
    load(rows, shuffle=False, eval="none")
    assert capsys.readouterr().err.count("tokenized in") == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "removed", "no report"])
def test_a_damaged_entry_is_made_anew(rows, capsys, damage):
    examples, _ = load(rows)
    (tokens,) = cache_folder().rglob("tokens.npy")
    content = tokens.read_bytes()
    match damage:
        case "cut":
            tokens.write_bytes(content[:-4])
        case "flipped":
            tokens.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "removed":
            tokens.unlink()
        case "no report":
            (tokens.parent / cache.ENTRY).write_text("{}")
    again, _ = load(rows)
    assert "is damaged" in capsys.readouterr().err
    assert same(again, examples)
    load(rows)
    assert "tokens from the cache" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_does_not_stop_the_run(rows, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "file"))
    examples, _ = load(rows)
    assert len(examples) == 2
    assert "cache: not written to" in capsys.readouterr().err


def test_nothing_is_left_beside_the_entry(rows):
    load(rows)
    assert len(list((cache_folder() / "tokens").iterdir())) == 1


@pytest.mark.parametrize(
    ("path", "held_out", "files"),
    [
        ("tiny", "auto", ("sft_test.jsonl",)),
        ("tiny", "none", None),
        ("FILE", "auto", None),
        ("FILE", "tiny", ("sft_test.jsonl",)),
        ("tiny", "FILE", ("r.jsonl",)),
    ],
)
def test_held_out_rows(rows, path, held_out, files):
    named = [name.replace("FILE", str(rows)) for name in (path, held_out)]
    cfg = DataConfig(path=named[0], eval=named[1])
    found = load_eval_examples(cfg, "sft", toy_tokenizer(), SFT)
    assert (found and found[0].files) == files


def test_a_txt_file_is_cut_and_packed(tmp_path):
    path = tmp_path / "d.txt"
    path.write_text("abcd")
    cfg = DataConfig(path=str(path), packing=True, max_length=4, train_on="all")
    examples, report = load_examples(cfg, "pretrain", toy_tokenizer(bos_token=None), (TextRecord,))
    assert examples.tokens.tolist() == [EOS, A, B, C, C, D, EOS]
    assert examples.tokens[examples.loss_mask].tolist() == [A, B, C, D, EOS]
    assert (report.kind, report.kept, report.examples) == ("text", 1, 2)


def test_chats_are_loaded(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", {"messages": turns("a", "b")})
    _, report = load(path)
    assert (report.kind, report.trained_tokens) == ("chat", 2)


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"id": "no", "text": "document"}, ["document"]),
        ({"prompt": turns("q"), "chosen": "good", "rejected": "bad"}, ["q", "good", "bad"]),
        ({"messages": turns("u", "a"), "kind": "no"}, ["u", "a"]),
        ({"prompt": "p", "responses": ["r", "s"], "scores": [1, 2]}, ["p", "r", "s"]),
        ({"instruction": "i", "output": "o", "prompt": "p", "completion": "c"}, ["p", "c"]),
        ({"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]}, "hg"),
    ],
)
def test_iter_texts_yields_every_text_of_a_record_and_passes_broken_rows_over(tmp_path, row, texts):
    path = write_jsonl(tmp_path / "r.jsonl", "broken {", row, {"nothing": 1})
    assert list(iter_texts(DataConfig(path=str(path)), "sft", ANY)) == list(texts)


def test_iter_texts_reads_the_columns_that_are_named(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", {"review": "named"})
    cfg = DataConfig(path=str(path), columns={"text": "review"})
    assert list(iter_texts(cfg, "pretrain", ANY)) == ["named"]


def test_a_tokenizer_is_not_trained_on_held_out_rows(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", *({"text": str(i)} for i in range(10)))
    assert len(list(iter_texts(DataConfig(path=str(path), eval=3), "pretrain", ANY))) == 7


@pytest.mark.parametrize(
    ("rows", "chats"),
    [
        ([{"prompt": "p", "completion": "c"}], False),
        ([{"messages": turns("q", "r")}], True),
        (["{", {"messages": []}, {"messages": turns("q", "r")}], True),
        ([{"prompt": turns("q"), "completion": "c"}], True),
        ([{"text": "t"}], False),
    ],
)
def test_the_first_good_row_says_whether_the_rows_are_chats(tmp_path, rows, chats):
    path = write_jsonl(tmp_path / "r.jsonl", *rows)
    assert has_chat_records(DataConfig(path=str(path)), "sft", ANY) is chats


def test_one_source_of_chats_is_enough(tmp_path):
    texts = write_jsonl(tmp_path / "a.jsonl", {"prompt": "p", "completion": "c"})
    chats = write_jsonl(tmp_path / "b.jsonl", {"messages": turns("q", "r")})
    assert has_chat_records(DataConfig(path=[str(texts), str(chats)], eval=0.5), "sft", ANY)

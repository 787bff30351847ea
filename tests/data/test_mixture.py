"""Slices, several sources with weights, and rows held out of training."""

import numpy as np
import pytest

from rlhf_cli.data.config import DataConfig, SourceConfig
from rlhf_cli.data.dataset import load_eval_examples, load_examples
from rlhf_cli.data.records.types import ChatRecord, PromptCompletionRecord, TextRecord
from rlhf_cli.data.sources.base import parse_split
from rlhf_cli.data.sources.mixture import mix_training_rows, open_sources, select_held_out_rows
from rlhf_cli.errors import ConfigError, DataError
from tests.data.toy import LETTERS, toy_tokenizer, turns, write_jsonl

SFT = (PromptCompletionRecord, ChatRecord)


@pytest.fixture
def letters(tmp_path):
    """Twenty rows: a, b, c and so on."""
    return str(write_jsonl(tmp_path / "letters.jsonl", *({"text": c} for c in LETTERS[:20])))


@pytest.fixture
def digits(tmp_path):
    return str(write_jsonl(tmp_path / "digits.jsonl", *({"text": str(i)} for i in range(10))))


def opened(path, **settings):
    cfg = DataConfig(path=path, **settings)
    return open_sources(cfg, cfg.path, "pretrain", "train")


def drawn(path, held_out=0, seed=0, **settings):
    return [
        row.parsed["text"]
        for row in mix_training_rows(opened(path, **settings), held_out, seed).rows()
    ]


@pytest.mark.parametrize(
    ("split", "rows"),
    [
        ("", LETTERS[:20]),
        ("train", LETTERS[:20]),
        ("train[:10%]", "ab"),
        ("[3:5]", "de"),
        ("train[-2:]", "st"),
        ("[50%:]", LETTERS[10:20]),
        ("[:1%]", ""),
        ("[18:99]", "st"),
        ("[:]", LETTERS[:20]),
    ],
)
def test_a_slice_of_a_file(letters, split, rows):
    assert "".join(drawn(letters, split=split)) == rows


@pytest.mark.parametrize("split", ["train[", "train[5]", "[a:b]", "train[:5%", "train+test", "%"])
def test_a_split_that_is_none_is_a_config_error(split):
    with pytest.raises(ConfigError, match=r"^data\.split: got .*Try data\.split=train\[:10%\]$"):
        parse_split(split)


def test_a_file_has_one_split(letters):
    with pytest.raises(DataError, match=r"^data\.split: letters\.jsonl is one file and has no spl"):
        opened(letters, split="validation[:3]")


def test_several_sources_follow_one_another(letters, digits):
    assert "".join(drawn([letters, digits])) == LETTERS[:20] + "0123456789"


def test_a_whole_weight_draws_every_row_so_often(digits):
    assert drawn([SourceConfig(path=digits, weight=3)]) == list("0123456789") * 3


def test_a_half_weight_draws_half_of_the_rows_by_seed(letters):
    half = [SourceConfig(path=letters, weight=0.5)]
    first = drawn(half)
    assert (len(first), len(set(first))) == (10, 10)
    assert first == sorted(first) == drawn(half)
    assert drawn(half, seed=1) != first


def test_a_weight_of_two_and_a_half(letters):
    rows = drawn([SourceConfig(path=letters, weight=2.5)])
    assert sorted({rows.count(c) for c in LETTERS[:20]}) == [2, 3]
    assert len(rows) == 50


def test_weights_that_draw_nothing_are_an_error(letters):
    with pytest.raises(DataError, match=r"^data\.path: no row "):
        drawn([SourceConfig(path=letters, weight=0.01)])


@pytest.mark.parametrize(("held_out", "rows"), [(0.1, 3), (0.001, 1), (7, 7)])
def test_held_out_rows_and_training_rows_are_all_rows_once(letters, digits, held_out, rows):
    kept = drawn([letters, digits], held_out)
    out = [
        row.parsed["text"]
        for row in select_held_out_rows(opened([letters, digits]), held_out).rows()
    ]
    assert len(out) == rows
    assert sorted(kept + out) == sorted(LETTERS[:20] + "0123456789")


def test_held_out_rows_do_not_depend_on_seed_or_weight(letters):
    kept = drawn(letters, 0.25)
    assert drawn(letters, 0.25, seed=9) == kept
    assert set(drawn([SourceConfig(path=letters, weight=2)], 0.25)) == set(kept)


@pytest.mark.parametrize("held_out", [20, 500, 0.99])
def test_no_row_left_to_train_on_is_an_error(letters, held_out):
    with pytest.raises(DataError, match=r"^data\.eval: holding out \d+ of 20 rows leaves none"):
        drawn(letters, held_out)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 0, -3])
def test_a_share_or_number_out_of_range(value):
    assert DataConfig(eval=value).problems()[0].startswith(f"data.eval: got {value}; need ")
    assert DataConfig(eval=0.5).problems() == DataConfig(eval=1).problems() == []


def both(path, **settings):
    cfg = DataConfig(path=path, **settings)
    trained = load_examples(cfg, "pretrain", toy_tokenizer(), (TextRecord,))
    return trained, load_eval_examples(cfg, "pretrain", toy_tokenizer(), (TextRecord,))


def test_the_report_counts_both_sides_and_the_cache_keeps_them_apart(letters):
    for _ in range(2):  # the second time from the cache
        (examples, report), (held_out, held_out_report) = both(letters, eval=0.2)
        assert (report.rows, report.held_out, held_out_report.rows) == (16, 4, 4)
        assert (len(examples), len(held_out)) == (16, 4)
        assert report.lines()[1] == (f"  {letters}, weight 1: 16 rows sampled of 20, 4 held out")


def test_the_same_rows_are_held_out_at_another_length(letters):
    _, (first, _) = both(letters, eval=5)
    _, (second, _) = both(letters, eval=5, max_length=2)
    assert np.array_equal(first.origin, np.unique(second.origin, axis=0))


def test_copies_are_trained_but_counted_once(tmp_path):
    path = write_jsonl(
        tmp_path / "r.jsonl",
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": ""},
        "{",
    )
    cfg = DataConfig(path=[SourceConfig(path=str(path), weight=2)], max_bad_rows=1)
    examples, report = load_examples(cfg, "sft", toy_tokenizer(), SFT)
    assert len(examples) == 2
    assert (report.rows, report.kept, report.malformed) == (3, 1, 1)
    assert report.refused["empty response"].rows == 1


def test_each_source_has_its_own_columns_format_and_kind(tmp_path):
    one = write_jsonl(tmp_path / "a.jsonl", {"q": "a", "r": "b"})
    two = write_jsonl(tmp_path / "b.jsonl", {"messages": turns("c", "d")})
    sources = [SourceConfig(path=str(one), columns={"prompt": "q", "completion": "r"}), str(two)]
    examples, report = load_examples(DataConfig(path=sources), "sft", toy_tokenizer(), SFT)
    assert (len(examples), report.kind) == (2, "prompt_completion, chat")
    assert [examples.location(i) for i in (0, 1)] == ["a.jsonl:1", "b.jsonl:1"]


def test_files_of_the_same_name_are_distinguished(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "r.jsonl", {"prompt": "a", "completion": "b"})
    cfg = DataConfig(path=[str(tmp_path / "one" / "r.jsonl"), str(tmp_path / "two")])
    examples, _ = load_examples(cfg, "sft", toy_tokenizer(), SFT)
    assert [examples.location(i) for i in (0, 1)] == [
        f"{tmp_path}/one/r.jsonl:1",
        f"{tmp_path}/two/r.jsonl:1",
    ]


def test_a_source_that_is_read_otherwise_misses_the_cache(tmp_path, capsys):
    path = str(write_jsonl(tmp_path / "r.jsonl", {"prompt": "a", "completion": "b", "other": "c"}))
    for completion in ("completion", "other", "other"):
        source = SourceConfig(path=path, columns={"completion": completion})
        load_examples(DataConfig(path=[source]), "sft", toy_tokenizer(), SFT)
    assert capsys.readouterr().err.count("tokenized in") == 2


def test_a_folder_named_by_splits_gives_one_of_them(tmp_path):
    for name in ("train-00.jsonl", "train-01.jsonl", "test.jsonl", "trainer_notes.txt"):
        write_jsonl(tmp_path / name, {"text": name})
    cfg = DataConfig(path=str(tmp_path))
    [train] = open_sources(cfg, cfg.path, "pretrain", "train")
    [test] = open_sources(cfg, cfg.path, "pretrain", "test")
    assert (train.names, test.names) == (("train-00.jsonl", "train-01.jsonl"), ("test.jsonl",))
    assert "test.jsonl" in train.skipped
    with pytest.raises(DataError, match=r"no split validation; the files' names begin with test, "):
        opened(str(tmp_path), split="validation")

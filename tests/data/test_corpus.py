"""What is known of the rows before there is a tokenizer."""

import pytest

from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.dataset import has_chat_records, iter_texts
from rlhf_cli.data.records.types import KINDS
from tests.data.toy import turns, write_jsonl

ANY = tuple(kind.record for kind in KINDS)


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

"""Trees of messages, whole or one message a row."""

import json

import pytest

from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.dataset import load_examples
from rlhf_cli.data.prompts import load_prompts
from rlhf_cli.data.records.fields import Message
from rlhf_cli.data.records.reader import RecordReader
from rlhf_cli.data.records.types import (
    ChatRecord,
    LabelledRecord,
    PreferenceRecord,
    PromptCompletionRecord,
    RankedRecord,
    ScoredRecord,
    TextRecord,
)
from rlhf_cli.data.report import DataReport
from rlhf_cli.data.sources.mixture import open_sources
from tests.data.toy import toy_tokenizer, write_jsonl

SFT = (PromptCompletionRecord, ChatRecord)


def message(name, parent, role, text, **more):
    return {"message_id": name, "parent_id": parent, "role": role, "text": text, **more}


MESSAGES = [
    message("b", "a", "assistant", "ab", rank=1),
    message("a", None, "prompter", "q", rank=None),
    message("c", "a", "assistant", "ac", rank=0),
    message("x", "a", "assistant", "spam", rank=2, deleted=True),
    message("d", "b", "prompter", "bd"),
    message("e", "d", "assistant", "de", rank=0),
    message("f", "e", "prompter", "thanks"),
    message("g", "e", "prompter", "bye"),
    message("z", None, "prompter", "other"),
    message("y", "z", "assistant", "zy", rank=0),
    message("w", "nowhere", "assistant", "lost"),
]


def nested(name):
    [own] = [m for m in MESSAGES if m["message_id"] == name]
    children = [m["message_id"] for m in MESSAGES if m["parent_id"] == name]
    return {**own, "replies": [nested(child) for child in children]}


@pytest.fixture(params=["rows", "trees"])
def path(request, tmp_path):
    trees = [{"message_tree_id": name, "prompt": nested(name)} for name in ("a", "z")]
    return write_jsonl(tmp_path / "t.jsonl", *(MESSAGES if request.param == "rows" else trees))


def read(path, allowed, **settings):
    cfg = DataConfig(path=str(path), max_bad_rows=9, **settings)
    report = DataReport()
    [source] = open_sources(cfg, cfg.path, "sft", "train")
    found = RecordReader(cfg, "sft", allowed, report).read(source.rows())
    return [item.record for item in found], report


def talk(*texts):
    roles = ("user", "assistant")
    return tuple(Message(roles[i % 2], text) for i, text in enumerate(texts))


def test_every_conversation_up_to_the_last_reply(path):
    found, report = read(path, SFT)
    expected = [talk("q", "ab", "bd", "de"), talk("q", "ac"), talk("other", "zy")]
    assert found == [ChatRecord(messages) for messages in expected]
    lost = {"a reply to a message that is not in the data": 1} if report.rows == 4 else {}
    assert {reason: refused.rows for reason, refused in report.refused.items()} == lost
    assert report.malformed == 0


def test_ranked_replies_for_a_reward_model_and_the_two_ends_for_a_pair(path):
    preference = (PreferenceRecord, RankedRecord, ScoredRecord, LabelledRecord)
    ranked, report = read(path, preference)
    replies = (talk("", "ac")[1:], talk("", "ab")[1:])
    assert ranked == [RankedRecord(talk("q"), replies, (0.0, -1.0))]
    assert report.refused["the tree has no message with ranked replies"].rows == 1
    pairs, _ = read(path, (PreferenceRecord,))
    assert pairs == [PreferenceRecord(talk("q"), *replies)]
    assert read(path, preference, format="preference")[0] == pairs


def test_prompts_are_what_a_prompter_said_last(path):
    found = load_prompts(str(path))
    assert [prompt[-1].content for prompt in found.prompts] == ["q", "bd", "thanks", "bye", "other"]
    assert found.prompts[1] == talk("q", "ab", "bd")


def test_trees_are_held_out_whole(tmp_path):
    rows = [message(f"{i}", None, "prompter", f"q{i}") for i in range(4)]
    rows += [message(f"{i}{j}", f"{i}", "assistant", f"r{j}") for i in range(4) for j in range(2)]
    cfg = DataConfig(path=str(write_jsonl(tmp_path / "t.jsonl", *rows)), eval=1)
    examples, report = load_examples(cfg, "sft", toy_tokenizer(), SFT)
    assert (len(examples), report.rows, report.kept, report.held_out) == (6, 6, 6, 1)


def test_to_pretrain_a_message_is_a_document(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", *MESSAGES)
    cfg = DataConfig(path=str(path))
    [source] = open_sources(cfg, cfg.path, "pretrain", "train")
    found = RecordReader(cfg, "pretrain", (TextRecord,), DataReport()).read(source.rows())
    assert len(list(found)) == len(MESSAGES)


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (
            [MESSAGES[1], MESSAGES[1]],
            "t.jsonl:2: message_id: got 'a'; need an id that no other message has",
        ),
        ([MESSAGES[1], {"text": "x"}], "t.jsonl:2: no column message_id, parent_id, role; need a"),
        ([MESSAGES[1], "{"], "t.jsonl:2: broken JSON"),
        (
            [{"prompt": {"text": "q", "role": "prompter", "replies": 3}}],
            "t.jsonl:1: replies: got 3",
        ),
        (
            [{"prompt": {"text": 3, "role": "prompter", "replies": [nested("y")]}}],
            "t.jsonl:1: messages[0].content: got 3; need text",
        ),
    ],
)
def test_what_is_no_message_of_a_tree_is_named(tmp_path, rows, line):
    report = read(write_jsonl(tmp_path / "t.jsonl", *rows), SFT)[1]
    assert report.malformed_shown[0].startswith(line)


def test_a_deep_tree_is_read(tmp_path):
    rows = [message("0", None, "prompter", "q")]
    rows += [
        message(str(i), str(i - 1), ("prompter", "assistant")[i % 2], "t") for i in range(1, 1500)
    ]
    found, _ = read(write_jsonl(tmp_path / "t.jsonl", *rows), SFT)
    assert [len(record.messages) for record in found] == [1500]
    assert json.dumps(found[0].messages[-1].content) == '"t"'

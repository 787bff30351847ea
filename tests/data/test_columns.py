"""Columns under our names, texts made of columns, and the shapes that others made common."""

import pytest

from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.records.columns import ColumnMapping
from rlhf_cli.data.records.fields import Message
from rlhf_cli.data.records.reader import RecordReader
from rlhf_cli.data.records.types import (
    ChatRecord,
    PreferenceRecord,
    PromptCompletionRecord,
    TextRecord,
)
from rlhf_cli.data.report import DataReport, MalformedRow
from rlhf_cli.data.sources.files import read_rows
from rlhf_cli.errors import ConfigError
from tests.data.toy import turns, write_jsonl

SFT = (PromptCompletionRecord, ChatRecord)


def read(tmp_path, *rows, allowed=SFT, **settings):
    path = write_jsonl(tmp_path / "r.jsonl", *rows)
    report = DataReport()
    reader = RecordReader(DataConfig(max_bad_rows=9, **settings), "sft", allowed, report)
    return [item.record for item in reader.read(read_rows([path]))], report


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("Question: {question}\n\nAnswer: ", "Question: q\n\nAnswer: "),
        (r"$\theta$: {question}\n", r"$\theta$: q\n"),
        ("{question} of {number} {share}", "q of 3 0.5"),
        ("{{{question}}} {{}}", "{q} {}"),
        ("{meta.title}: {dotted.name}", "t: d"),
        ("meta.title", "t"),
        ("{question}", "q"),
        ("{number}", 3),
        ("{{no column}}", "{no column}"),
    ],
)
def test_a_text_with_columns_in_it(template, text):
    row = {"question": "q", "number": 3, "share": 0.5, "meta": {"title": "t"}, "dotted.name": "d"}
    assert ColumnMapping({"prompt": template}).rename(row)["prompt"] == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("to {nothing}", "no column nothing (data.columns); found question, none, list"),
        ("{question.part}", "no column question.part (data.columns); found question, none, list"),
        ("a {none}", "none: got null; need text or a number (data.columns)"),
        ("a {list}", "list: got a list of 1; need text or a number (data.columns)"),
    ],
)
def test_a_row_that_does_not_fit_the_text_is_malformed(template, message):
    with pytest.raises(MalformedRow) as error:
        ColumnMapping({"prompt": template}).rename({"question": "q", "none": None, "list": [1]})
    assert str(error.value) == message


@pytest.mark.parametrize("template", ["{question", "a}", "{}", "a {question!r}", "{question:>9}"])
def test_wrong_braces_are_a_config_error(template):
    with pytest.raises(ConfigError, match=r"^data\.columns\.prompt: got .*need names of columns"):
        ColumnMapping({"prompt": template})


def test_a_text_of_columns_reads_them(tmp_path):
    columns = {"prompt": "Q: {question}\nA:", "completion": "{answer.text}"}
    row = {"question": "q", "answer": {"text": " a"}, "id": 1}
    found, report = read(tmp_path, row, {"question": "q"}, columns=columns)
    assert found == [PromptCompletionRecord("Q: q\nA:", " a")]
    assert report.ignored_columns == ["id"]
    assert report.malformed_shown == [
        "r.jsonl:2: no column answer.text (data.columns); found question"
    ]


ALPACA = {"instruction": "Add.", "input": "1 {2}", "output": "3"}
ALPACA_PROMPT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd.\n\n### Input:\n1 {2}\n\n### Response:"
)
ALPACA_PROMPT_ALONE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\nAdd.\n\n### Response:"
)


def test_alpaca_rows_become_the_prompts_of_alpaca(tmp_path):
    found, report = read(
        tmp_path, ALPACA, {**ALPACA, "input": ""}, {**ALPACA, "input": None, "text": "all"}
    )
    assert found == [
        PromptCompletionRecord(ALPACA_PROMPT, "3"),
        PromptCompletionRecord(ALPACA_PROMPT_ALONE, "3"),
        PromptCompletionRecord(ALPACA_PROMPT_ALONE, "3"),
    ]
    assert report.ignored_columns == ["text"]


def test_alpaca_rows_as_chats(tmp_path):
    found, _ = read(tmp_path, ALPACA, {**ALPACA, "input": ""}, format="chat")
    said = Message("assistant", "3")
    assert found == [
        ChatRecord((Message("user", "Add.\n\n1 {2}"), said)),
        ChatRecord((Message("user", "Add."), said)),
    ]


def test_prompts_and_completions_as_chats(tmp_path):
    rows = [{"prompt": "q", "completion": "r"}, {"prompt": turns("q"), "completion": "r"}]
    found, _ = read(tmp_path, *rows, format="chat")
    assert found == [ChatRecord((Message("user", "q"), Message("assistant", "r")))] * 2


def test_a_broken_alpaca_row_says_column_and_value(tmp_path):
    _, report = read(tmp_path, ALPACA, {**ALPACA, "instruction": 3}, {"instruction": "no output"})
    assert report.malformed_shown == [
        "r.jsonl:2: instruction: got 3; need text",
        "r.jsonl:3: no column prompt, completion; found instruction. See rlhf docs data",
    ]


def test_sharegpt_rows_are_chats(tmp_path):
    said = [("system", "s"), ("human", "q"), ("gpt", "r"), ("tool", "t"), ("gpt", "u")]
    row = {"conversations": [{"from": who, "value": what} for who, what in said], "id": 1}
    found, report = read(tmp_path, row)
    roles = ("system", "user", "assistant", "tool", "assistant")
    assert found == [
        ChatRecord(tuple(Message(r, w) for r, (_, w) in zip(roles, said, strict=True)))
    ]
    assert report.ignored_columns == ["id"]


def test_conversations_with_roles_are_chats(tmp_path):
    found, _ = read(tmp_path, {"conversations": turns("q", "r")})
    assert found == [ChatRecord((Message("user", "q"), Message("assistant", "r")))]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([{"from": "crowd", "value": "x"}], 'messages[0].role: got "crowd"; need one of'),
        ([{"from": ["human"], "value": "x"}], "messages[0].role: got a list of 1; need one of"),
        ([{"from": "human"}], "messages[0]: got an object with keys ['from']; need an object"),
        ("text", 'messages: got "text"; need a list'),
    ],
)
def test_broken_conversations_are_malformed(tmp_path, value, message):
    good = {"conversations": turns("q", "r")}
    _, report = read(tmp_path, good, {"conversations": value})
    assert report.malformed_shown[0].startswith(f"r.jsonl:2: {message}")


def test_content_in_text_parts_and_the_role_developer(tmp_path):
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    row = {
        "messages": [
            {"role": "developer", "content": "d"},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": "r"},
        ]
    }
    picture = {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}
    found, report = read(tmp_path, row, picture)
    assert [(m.role, m.content) for m in found[0].messages] == [
        ("system", "d"),
        ("user", "one two"),
        ("assistant", "r"),
    ]
    assert report.malformed_shown == [
        "r.jsonl:2: messages[0].content[0]: got an object with keys ['type']; "
        "need a part of type text"
    ]


def test_two_whole_chats_beside_the_prompt_as_text(tmp_path):
    row = {"prompt": "q", "chosen": turns("q", "r"), "rejected": turns("q", "s")}
    found, _ = read(tmp_path, row, allowed=(PreferenceRecord,))
    assert found == [
        PreferenceRecord(
            (Message("user", "q"),), (Message("assistant", "r"),), (Message("assistant", "s"),)
        )
    ]


def test_pretraining_takes_the_text_of_a_row_that_has_both(tmp_path):
    found, _ = read(tmp_path, {**ALPACA, "text": "all"}, allowed=(TextRecord,))
    assert found == [TextRecord("all")]

"""Shapes of rows that other tools write, and lists that files hold as text."""

import json

import pytest

from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.records.fields import Message
from rlhf_cli.data.records.reader import RecordReader
from rlhf_cli.data.records.types import (
    ChatRecord,
    LabelledRecord,
    PreferenceRecord,
    PromptCompletionRecord,
    PromptRecord,
    RankedRecord,
    ScoredRecord,
    TextRecord,
)
from rlhf_cli.data.report import DataReport
from rlhf_cli.data.sources.files import read_rows
from rlhf_cli.errors import DataError
from tests.data.toy import turns, write_jsonl

SFT = (PromptCompletionRecord, ChatRecord)
PAIRS = (PreferenceRecord,)
PREFERENCE = (LabelledRecord, PreferenceRecord)
SYSTEM = {"role": "system", "content": "s"}


def said(*messages):
    """Messages of user and assistant in turn; a pair names its role."""
    given = [
        m if isinstance(m, tuple) else (r, m) for r, m in zip(_roles(), messages, strict=False)
    ]
    return tuple(Message(role, content) for role, content in given)


def _roles():
    while True:
        yield from ("user", "assistant")


def spoken(*texts):
    return [{"from": who, "value": t} for who, t in zip(_speakers(), texts, strict=False)]


def _speakers():
    while True:
        yield from ("human", "gpt")


def replies(text):
    return (Message("assistant", text),)


def read(tmp_path, *rows, allowed=SFT, name="r.jsonl", **settings):
    path = tmp_path / name
    if name.endswith("jsonl"):
        write_jsonl(path, *rows)
    else:
        path.write_text("\n".join(rows) + "\n")
    report = DataReport()
    reader = RecordReader(DataConfig(max_bad_rows=9, **settings), "sft", allowed, report)
    return [item.record for item in reader.read(read_rows([path]))], report


# A response's own copy of the prompt

PAIR = PreferenceRecord(said("q"), replies("r"), replies("s"))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": turns("q"), "chosen": turns("q", "r"), "rejected": turns("q", "s")},
        {"prompt": turns("q"), "chosen": turns("q", "r"), "rejected": "s"},
        {"prompt": "q", "chosen": turns("q", "r"), "rejected": turns("q", "s")},
        {"prompt": "q", "chosen": turns("", "r")[1:], "rejected": turns("", "s")[1:]},
        {"prompt": "q", "chosen": turns("", "r")[1], "rejected": turns("", "s")[1]},
        {"prompt": "q", "chosen": turns("", "r")[1:], "rejected": "s"},
        {"messages": turns("q"), "chosen": turns("", "r")[1:], "rejected": turns("", "s")[1:]},
        {"messages": turns("q"), "chosen": "r", "rejected": "s"},
        {"messages": turns("q"), "chosen": turns("q", "r"), "rejected": turns("q", "s")},
        {
            "conversations": spoken("q"),
            "chosen": spoken("", "r")[1],
            "rejected": spoken("", "s")[1],
        },
        {"prompt": spoken("q"), "chosen": spoken("q", "r"), "rejected": spoken("q", "s")},
        {"prompt": None, "chosen": turns("q", "r"), "rejected": turns("q", "s"), "margin": None},
        {"prompt": {"role": ["user"], "content": ["q"]}, "chosen": "r", "rejected": "s"},
    ],
)
def test_a_question_stands_once_whatever_the_form(tmp_path, row):
    assert read(tmp_path, row, allowed=PAIRS)[0] == [PAIR]


@pytest.mark.parametrize(
    ("row", "allowed", "record"),
    [
        (
            {"prompt": turns("q"), "completion": turns("q", "r")},
            SFT,
            PromptCompletionRecord(said("q"), replies("r")),
        ),
        (
            {"prompt": turns("q"), "responses": [turns("q", "r"), "s"], "scores": [1, 0]},
            (RankedRecord,),
            RankedRecord(said("q"), (replies("r"), replies("s")), (1.0, 0.0)),
        ),
        (
            {"prompt": turns("q", "r", "t"), "chosen": turns("q", "r", "t", "u"), "rejected": "v"},
            PAIRS,
            PreferenceRecord(said("q", "r", "t"), replies("u"), replies("v")),
        ),
        (
            {
                "prompt": "first",
                "chosen": turns("first", "a", "b", "c"),
                "rejected": turns("first", "a", "b", "d"),
            },
            PAIRS,
            PreferenceRecord(said("first", "a", "b"), replies("c"), replies("d")),
        ),
        (
            {
                "prompt": "\n\nHuman: q\n\nAssistant:",
                "chosen": "\n\nHuman: q\n\nAssistant: r",
                "rejected": "\n\nHuman: q\n\nAssistant: s",
            },
            PAIRS,
            PreferenceRecord("\n\nHuman: q\n\nAssistant:", " r", " s"),
        ),
        (
            {
                "prompt": "\n\nHuman: q",
                "chosen": "\n\nHuman: q\n\nAssistant: r",
                "rejected": "\n\nHuman: q\n\nAssistant: s",
            },
            PAIRS,
            PreferenceRecord("\n\nHuman: q\n\nAssistant:", " r", " s"),
        ),
        (
            {"prompt": turns("q"), "completion": turns("q", "r"), "score": 2},
            (ScoredRecord,),
            ScoredRecord(said("q"), replies("r"), 2.0),
        ),
    ],
)
def test_a_copy_of_the_prompt_is_taken_off_every_response(tmp_path, row, allowed, record):
    assert read(tmp_path, row, allowed=allowed)[0] == [record]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": turns("a", "b", "q"), "chosen": turns("q", "r"), "rejected": "s"},
            "chosen: begins with the user's \"q\" after a prompt that ends with the user's; need",
        ),
        (
            {"prompt": turns("q"), "chosen": [SYSTEM, *turns("q", "r")], "rejected": "s"},
            "chosen: begins with the system's \"s\" after a prompt that ends with the user's; need",
        ),
        (
            {"prompt": "other", "chosen": turns("q", "r"), "rejected": turns("q", "s")},
            'chosen: begins with the user\'s "q", and none of its messages is the prompt; need',
        ),
        (
            {"prompt": "q", "chosen": turns("q", "r"), "rejected": turns("p", "s")},
            "rejected: begins with the user's \"p\" after a prompt that ends with the user's; need",
        ),
    ],
)
def test_another_copy_of_the_prompt_is_named(tmp_path, row, message):
    found, report = read(tmp_path, row, allowed=PAIRS)
    assert found == []
    assert report.malformed_shown[0].startswith(f"r.jsonl:1: {message}")


# Where two transcripts part, and what stands behind the last turn


def transcript(*texts):
    marks = ("\n\nHuman: ", "\n\nAssistant: ")
    return "".join(marks[i % 2] + text for i, text in enumerate(texts))


def test_transcripts_that_part_early_have_responses_of_several_turns(tmp_path):
    lists = {"chosen": turns("q", "r", "t", "u"), "rejected": turns("q", "s", "v", "w")}
    texts = {"chosen": transcript("q", "r", "t", "u"), "rejected": transcript("q", "s")}
    found, report = read(tmp_path, lists, texts, allowed=PAIRS)
    assert found == [
        PreferenceRecord(said("q"), said("", "r", "t", "u")[1:], said("", "s", "v", "w")[1:]),
        PreferenceRecord("\n\nHuman: q\n\nAssistant:", " r\n\nHuman: t\n\nAssistant: u", " s"),
    ]
    assert [(note.rows, note.example) for note in report.notes.values()] == [(2, "r.jsonl:1")]


@pytest.mark.parametrize("form", [turns, transcript], ids=["messages", "text"])
@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (("q", "r"), ("p", "s"), "the two transcripts have different prompts"),
        (("q", "r", "t", "u"), ("q", "r", "v", "w"), "the two transcripts have different prompts"),
        (("q", "r", "t", "u"), ("q", "r"), "the two transcripts have different prompts"),
        (("q", "r"), ("q", "r"), "chosen equals rejected"),
        (("q", "r", "t", "u"), ("q", "r", "t", "u"), "chosen equals rejected"),
        (("q", "r", "bye"), ("q", "r", "thanks"), "chosen equals rejected"),
    ],
)
def test_transcripts_without_two_responses_to_one_prompt(tmp_path, form, chosen, rejected, reason):
    row = {"chosen": form(*chosen), "rejected": form(*rejected)}
    found, report = read(tmp_path, row, allowed=PAIRS)
    assert (found, [*report.refused]) == ([], [reason])


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": turns("q", "r", "bye"), "rejected": turns("q", "s", "bye")},
        {"chosen": turns("q", "r", "bye"), "rejected": turns("q", "s")},
        {"prompt": turns("q"), "chosen": turns("", "r", "bye")[1:], "rejected": "s"},
        {"prompt": turns("q"), "chosen": [*turns("q", "r"), SYSTEM], "rejected": "s"},
    ],
)
def test_what_the_human_says_last_is_no_part_of_a_response(tmp_path, row):
    found, report = read(tmp_path, row, allowed=PAIRS)
    assert found == [PAIR]
    [note] = [line for line in report.note_lines() if "left out" in line]
    assert note == (
        "  1 row: the turns after the assistant's last one were left out of a response; the first "
        "is r.jsonl:1"
    )


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": transcript("q", "r", "bye"), "rejected": transcript("q", "s", "bye")},
        {"prompt": transcript("q", "")[:-1], "chosen": " r\n\nHuman: bye", "rejected": " s"},
        {
            "prompt": transcript("q"),
            "chosen": transcript("q", "r", "bye"),
            "rejected": transcript("q", "s"),
        },
    ],
)
def test_what_the_human_says_last_in_text_is_no_part_of_a_response(tmp_path, row):
    found, report = read(tmp_path, row, allowed=PAIRS)
    assert found == [PreferenceRecord("\n\nHuman: q\n\nAssistant:", " r", " s")]
    assert [note.rows for note in report.notes.values()] == [1]


def test_the_human_in_plain_text_stays(tmp_path):
    row = {"prompt": "Write a dialogue.", "completion": "Anna: hi\n\nHuman: hello"}
    found, report = read(tmp_path, row)
    assert found == [PromptCompletionRecord(row["prompt"], row["completion"])]
    assert report.notes == {}


# LLaMA-Factory, SHP


def test_earlier_turns_and_a_system_message_of_an_instruction(tmp_path):
    rows = [
        {"instruction": "q", "input": "i", "output": "r", "system": "s", "history": [["a", "b"]]},
        {"instruction": "q", "input": "", "output": "r", "system": "", "history": []},
        {"instruction": "q", "output": "r", "system": None, "history": None},
    ]
    found, report = read(tmp_path, *rows)
    assert found == [
        ChatRecord((Message("system", "s"), *said("a", "b", "q\n\ni", "r"))),
        *[ChatRecord(said("q", "r"))] * 2,
    ]
    assert (report.ignored_columns, report.kind) == ([], "chat")


def test_a_history_behind_rows_without_one_says_what_to_set(tmp_path):
    plain = {"instruction": "q", "output": "r"}
    rows = [plain, {**plain, "history": [["a", "b"]]}]
    found, report = read(tmp_path, *rows)
    assert (len(found), report.kind) == (1, "prompt_completion")
    assert report.malformed_shown[0].endswith("This row fits data.format=chat")
    assert len(read(tmp_path, *rows, format="chat")[0]) == 2


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ("text", 'history: got "text"; need a list of [question, answer]'),
        ([["a"]], "history[0]: got a list of 1; need [question, answer]"),
    ],
)
def test_a_broken_history_is_named(tmp_path, history, message):
    row = {"instruction": "q", "output": "r", "history": history}
    assert read(tmp_path, row)[1].malformed_shown == [f"r.jsonl:1: {message}"]


def test_pairs_and_labels_of_an_instruction(tmp_path):
    pair = {"instruction": "q", "input": "i", "chosen": "r", "rejected": "s"}
    [plain], report = read(tmp_path, pair, allowed=PREFERENCE)
    assert (plain.chosen, plain.rejected, report.ignored_columns) == ("r", "s", [])
    assert plain.prompt.endswith("### Instruction:\nq\n\n### Input:\ni\n\n### Response:")
    [turned], _ = read(tmp_path, {**pair, "system": "s"}, allowed=PREFERENCE)
    assert turned.prompt == (Message("system", "s"), *said("q\n\ni"))
    message = {**pair, "input": "", "chosen": spoken("", "r")[1], "rejected": spoken("", "s")[1]}
    assert read(tmp_path, message, allowed=PREFERENCE)[0] == [PAIR]
    tagged = {"instruction": "q", "output": "r", "kto_tag": False}
    [labelled], report = read(tmp_path, tagged, allowed=PREFERENCE)
    assert (labelled.completion, labelled.label, report.ignored_columns) == ("r", False, [])


def test_pairs_and_labels_of_a_conversation(tmp_path):
    pair = {
        "conversations": spoken("a", "b", "q"),
        "chosen": {"from": "gpt", "value": "r"},
        "rejected": {"from": "gpt", "value": "s"},
        "system": "be kind",
        "id": 1,
    }
    found, report = read(tmp_path, pair, allowed=PAIRS)
    prompt = (Message("system", "be kind"), *said("a", "b", "q"))
    assert found == [PreferenceRecord(prompt, replies("r"), replies("s"))]
    assert report.ignored_columns == ["id"]
    tagged = {"conversations": spoken("q", "r"), "kto_tag": True}
    found, report = read(tmp_path, tagged, allowed=PREFERENCE)
    assert found == [LabelledRecord(said("q"), replies("r"), True)]
    assert report.ignored_columns == []
    scored = {"messages": turns("q", "r"), "score": 0.5}
    assert read(tmp_path, scored, allowed=(ScoredRecord,))[0] == [
        ScoredRecord(said("q"), replies("r"), 0.5)
    ]


def test_the_system_column_of_a_conversation(tmp_path):
    found, report = read(
        tmp_path,
        {"conversations": spoken("q", "r"), "system": "s"},
        {"conversations": [SYSTEM, *turns("q", "r")], "system": "other"},
        {"conversations": spoken("q", "r"), "system": " "},
    )
    whole = (Message("system", "s"), *said("q", "r"))
    assert found == [ChatRecord(whole), ChatRecord(whole), ChatRecord(said("q", "r"))]
    assert report.ignored_columns == ["system"]  # of the second row


def test_comments_on_a_post_by_which_is_preferred(tmp_path):
    row = {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1, "score_A": 5}
    found, report = read(tmp_path, row, {**row, "labels": 0}, allowed=PAIRS)
    assert found == [
        PreferenceRecord(said("q"), replies("a"), replies("b")),
        PreferenceRecord(said("q"), replies("b"), replies("a")),
    ]
    assert report.ignored_columns == ["score_A"]
    bad = read(tmp_path, {**row, "labels": 3}, allowed=PAIRS)[1]
    assert bad.malformed_shown[0].startswith("r.jsonl:1: labels: got 3; need true or false")


# Names

CHAT = ChatRecord(said("q", "r"))


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"dialog": spoken("q", "r")}, {"messages": "dialog"}),
        ({"dialog": spoken("q", "r")}, {"conversations": "dialog"}),
        ({"meta": {"dialog": turns("q", "r")}}, {"messages": "meta.dialog"}),
        ({"messages": spoken("q", "r")}, {}),
        ({"messages": [{"role": "human", "value": "q"}, {"from": "gpt", "content": "r"}]}, {}),
        (
            {"messages": [{**m, "from": None, "value": None} for m in turns("q", "r")]},
            {},
        ),
        (
            {"messages": [{**m, "role": None, "content": None} for m in spoken("q", "r")]},
            {},
        ),
        ({"messages": {"role": ["user", "assistant"], "content": ["q", "r"]}}, {}),
        ({"prompt": None, "completion": None, "text": None, "messages": turns("q", "r")}, {}),
    ],
)
def test_a_chat_under_any_name_and_with_any_keys(tmp_path, row, columns):
    found, report = read(tmp_path, row, columns=columns)
    assert (found, report.ignored_columns) == ([CHAT], [])


def test_alpacas_columns_under_other_names(tmp_path):
    row = {"query": "q", "answer": "r", "n": 1}
    columns = {"instruction": "query", "output": "answer"}
    found, report = read(tmp_path, row, columns=columns, format="chat")
    assert (found, report.ignored_columns) == ([CHAT], ["n"])


def test_keys_that_are_no_messages_are_named(tmp_path):
    _, report = read(tmp_path, {"messages": [{"speaker": "A", "text": "x"}]})
    assert report.malformed_shown[0] == (
        "r.jsonl:1: messages[0]: got an object with keys ['speaker', 'text']; need an object with "
        "role and content"
    )


def test_null_columns_are_missing_columns(tmp_path):
    rows = [
        {"prompt": "p", "completion": "c", "label": None},
        {"prompt": "p", "completion": "c", "label": True},
        {"prompt": "p", "completion": None, "label": False},
    ]
    found, report = read(tmp_path, *rows, allowed=(LabelledRecord,))
    assert found == [LabelledRecord("p", "c", True)]
    assert report.malformed_shown == [
        "r.jsonl:1: null: label; found prompt, completion; sft takes labelled rows (prompt, "
        "completion, label) or labelled_text rows (text, label)",
        "r.jsonl:3: no column completion; found prompt, label; null: completion. "
        "See rlhf docs data",
    ]
    assert report.ignored_columns == []


# Lists as text

QR = turns("q", "r")


@pytest.mark.parametrize("written", [json.dumps, repr], ids=["json", "python"])
@pytest.mark.parametrize(
    ("columns", "allowed", "record"),
    [
        ({"messages": QR}, SFT, CHAT),
        ({"conversations": spoken("q", "r")}, SFT, CHAT),
        ({"prompt": turns("q"), "chosen": "r", "rejected": turns("q", "s")}, PAIRS, PAIR),
        ({"prompt": turns("q"), "completion": QR[1]}, SFT,
         PromptCompletionRecord(said("q"), replies("r"))),
        ({"prompt": spoken("q")}, (PromptRecord,), PromptRecord(said("q"))),
        ({"prompt": "q", "responses": ["r", "s"], "scores": [1, 0.5]}, (RankedRecord,),
         RankedRecord("q", ("r", "s"), (1.0, 0.5))),
        ({"instruction": "q", "output": "r", "history": [["a", "b"]]}, SFT,
         ChatRecord(said("a", "b", "q", "r"))),
    ],
)  # fmt: skip
def test_lists_that_are_text_in_any_column(tmp_path, written, columns, allowed, record):
    row = {name: v if isinstance(v, str) else written(v) for name, v in columns.items()}
    assert read(tmp_path, row, allowed=allowed)[0] == [record]
    cells = ['"' + value.replace('"', '""') + '"' for value in row.values()]
    table = [",".join(row), ",".join(cells)]
    assert read(tmp_path, *table, allowed=allowed, name="r.csv")[0] == [record]


def test_responses_that_are_text_each(tmp_path):
    row = {"prompt": turns("q"), "responses": [json.dumps(QR), repr(turns("q", "s"))]}
    found, _ = read(tmp_path, {**row, "scores": "[1, 0]"}, allowed=(RankedRecord,))
    assert found == [RankedRecord(said("q"), (replies("r"), replies("s")), (1.0, 0.0))]


@pytest.mark.parametrize(
    "cell",
    ['[{"role": "user", "content": "q"', "[{'role': 'user'}\n {'role': 'user'}]",
     "array([{'role': 'user', 'content': 'q'}], dtype=object)", " [ {'from': x}]"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["prompt", "chosen", "rejected"])
def test_text_that_begins_like_messages_is_never_trained(tmp_path, name, cell):
    row = {"prompt": "p", "chosen": "c", "rejected": "r", name: cell}
    found, report = read(tmp_path, row, allowed=PAIRS)
    assert found == []
    assert report.malformed_shown[0].startswith(f"r.jsonl:1: {name}: got ")
    assert report.malformed_shown[0].endswith("; need JSON, or a list as Python prints it")


@pytest.mark.parametrize(
    ("row", "allowed"),
    [
        ({"text": json.dumps(QR)}, (TextRecord,)),
        ({"instruction": repr(QR), "output": "r"}, SFT),
        ({"instruction": "q", "output": json.dumps(spoken("q"))}, SFT),
    ],
)
def test_messages_in_a_column_of_text_are_refused_with_the_way_to_read_them(tmp_path, row, allowed):
    found, report = read(tmp_path, row, allowed=allowed)
    assert (found, report.malformed) == ([], 0)
    [reason] = report.refused
    assert "data.columns.messages=" in reason


def test_text_in_brackets_stays_text(tmp_path):
    rows = [{"prompt": "[1, 2]", "completion": "{'a': 1}"}, {"prompt": "[{", "completion": "[]"}]
    found, _ = read(tmp_path, *rows)
    assert found == [PromptCompletionRecord(r["prompt"], r["completion"]) for r in rows]


def test_a_shape_that_is_not_known_is_one_line(tmp_path):
    with pytest.raises(DataError) as error:
        read(tmp_path, {"chat": "x", "id": 1})
    assert str(error.value).startswith("r.jsonl:1: no known columns in ['chat', 'id']; sft takes ")

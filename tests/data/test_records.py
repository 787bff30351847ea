import pytest

from rlhf_cli.data.records.fields import Message
from rlhf_cli.data.records.types import (
    KINDS,
    ChatRecord,
    LabelledRecord,
    PreferenceRecord,
    PromptCompletionRecord,
    PromptRecord,
    RankedRecord,
    ScoredRecord,
    TextRecord,
    match_kinds,
)
from rlhf_cli.data.report import MalformedRow, RefusedRow
from tests.data.toy import turns

READ = {kind.name: kind.parse for kind in KINDS}
ASK, REPLY = Message("user", "q"), Message("assistant", "r")


@pytest.mark.parametrize(
    ("kind", "columns", "record"),
    [
        ("text", {"text": "t"}, TextRecord("t")),
        ("prompt", {"prompt": "p"}, PromptRecord("p")),
        ("prompt", {"prompt": turns("q")}, PromptRecord((ASK,))),
        ("prompt", {"prompt": ""}, PromptRecord("")),
        ("chat", {"messages": turns("q", "r")}, ChatRecord((ASK, REPLY))),
        (
            "prompt_completion",
            {"prompt": "p", "completion": " c"},
            PromptCompletionRecord("p", " c"),
        ),
        (
            "prompt_completion",
            {"prompt": turns("q"), "completion": "r"},
            PromptCompletionRecord((ASK,), (REPLY,)),
        ),
        (
            "prompt_completion",
            {"prompt": turns("q"), "completion": [{"role": "assistant", "content": "r"}]},
            PromptCompletionRecord((ASK,), (REPLY,)),
        ),
        (
            "preference",
            {"prompt": "p", "chosen": "c", "rejected": "r", "margin": 2},
            PreferenceRecord("p", "c", "r", 2.0),
        ),
        (
            "preference",
            {"prompt": "p", "chosen": "c", "rejected": "r", "margin": None},
            PreferenceRecord("p", "c", "r"),
        ),
        (
            "preference",
            {"chosen": "\n\nHuman: q\n\nAssistant: c", "rejected": "\n\nHuman: q\n\nAssistant: r"},
            PreferenceRecord("\n\nHuman: q\n\nAssistant:", " c", " r"),
        ),
        (
            "preference",
            {"chosen": turns("q", "r"), "rejected": turns("q", "s")},
            PreferenceRecord((ASK,), (REPLY,), (Message("assistant", "s"),)),
        ),
        (
            "ranked",
            {"prompt": "p", "responses": ["a", "b"], "scores": [1, -0.5]},
            RankedRecord("p", ("a", "b"), (1.0, -0.5)),
        ),
        (
            "labelled",
            {"prompt": "", "completion": "c", "label": False},
            LabelledRecord("", "c", False),
        ),
        ("labelled_text", {"text": "t", "label": 1}, LabelledRecord("", "t", True)),
        (
            "scored",
            {"prompt": turns("q"), "completion": "r", "score": -2},
            ScoredRecord((ASK,), (REPLY,), -2.0),
        ),
        ("scored_text", {"text": "t", "score": 0.5}, ScoredRecord("", "t", 0.5)),
    ],
)
def test_a_row_becomes_its_record(kind, columns, record):
    assert READ[kind](columns) == record


@pytest.mark.parametrize(
    ("kind", "columns", "message"),
    [
        ("text", {"text": None}, "no column text; found none; null: text. See rlhf docs data"),
        ("text", {"text": 3}, "text: got 3; need text"),
        ("text", {}, "no column text; found none. See rlhf docs data"),
        (
            "preference",
            {"prompt": "p", "rejected": "r"},
            "no column chosen; found prompt, rejected. See rlhf docs data",
        ),
        (
            "text",
            {"text": "half \ud83d"},
            "text: got half a surrogate pair (\\ud83d); need text",
        ),
        (
            "prompt_completion",
            {"prompt": None, "completion": "c", "margin": None},
            "no column prompt; found completion; null: prompt. See rlhf docs data",
        ),
        ("prompt", {"prompt": []}, "prompt: got an empty list; need a list with at least one item"),
        ("prompt", {"prompt": {"a": 1}}, "prompt: got an object with keys ['a']; need text or a"),
        (
            "chat",
            {"messages": ["hello"]},
            'messages[0]: got "hello"; need an object with role and content',
        ),
        (
            "chat",
            {"messages": [{"role": "bot", "content": "x"}]},
            'messages[0].role: got "bot"; need one of system, user, assistant, tool',
        ),
        (
            "chat",
            {"messages": [*turns("q"), {"role": ["assistant"], "content": "x"}]},
            "messages[1].role: got a list of 1; need one of",
        ),
        (
            "chat",
            {"messages": [{"role": "assistant", "content": None}]},
            "messages[0].content: got null; need text",
        ),
        (
            "prompt_completion",
            {"prompt": "p", "completion": turns("q", "r")},
            'completion: begins with the user\'s "q", and none of its messages is the prompt; need',
        ),
        (
            "prompt_completion",
            {"prompt": turns("q"), "completion": turns("again")},
            'completion: begins with the user\'s "again" after a prompt that ends with the',
        ),
        (
            "preference",
            {"prompt": "p", "chosen": "c", "rejected": "r", "margin": True},
            "margin: got true; need a number",
        ),
        (
            "ranked",
            {"prompt": "p", "responses": ["a", "b"], "scores": [1]},
            "scores: got 2 responses and 1 scores; need as many",
        ),
        (
            "ranked",
            {"prompt": "p", "responses": ["a", "b"], "scores": [1, float("nan")]},
            "scores[1]: got NaN; need a finite number",
        ),
        (
            "ranked",
            {"prompt": "p", "responses": ["a", "b"], "scores": [1, 10**400]},
            "scores[1]: got 1",
        ),
        ("preference", {"chosen": "a", "rejected": "b"}, "no column prompt, and no turn mark"),
        (
            "preference",
            {"chosen": "a", "rejected": turns("q", "r")},
            "chosen, rejected: one is text, one a list; need the same form for both",
        ),
    ],
)
def test_a_malformed_row_says_column_and_value(kind, columns, message):
    with pytest.raises(MalformedRow) as error:
        READ[kind](columns)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("kind", "columns", "reason"),
    [
        ("text", {"text": " \n"}, "empty text"),
        ("prompt_completion", {"prompt": "p", "completion": " "}, "empty response"),
        ("prompt_completion", {"prompt": turns("q"), "completion": ""}, "empty response"),
        ("chat", {"messages": turns("q", "r", "s", "")}, "empty response"),
        ("chat", {"messages": turns("q")}, "no assistant message"),
        ("preference", {"prompt": "p", "chosen": "", "rejected": "r"}, "empty response"),
        ("preference", {"prompt": "p", "chosen": "r", "rejected": "r"}, "chosen equals rejected"),
        ("preference", {"prompt": "p", "chosen": "c", "rejected": "\n"}, "empty response"),
        ("ranked", {"prompt": "p", "responses": ["a", " "], "scores": [1, 2]}, "empty response"),
        ("ranked", {"prompt": "p", "responses": ["a"], "scores": [1]}, "only one response"),
        (
            "ranked",
            {"prompt": "p", "responses": ["a", "b"], "scores": [1, 1.0]},
            "all scores are equal",
        ),
        (
            "ranked",
            {"prompt": "p", "responses": ["a", "b"], "scores": [1, 1 + 1e-12]},
            "all scores are equal",
        ),
        ("labelled_text", {"text": " ", "label": 1}, "empty text"),
        ("scored", {"prompt": "p", "completion": "", "score": 1}, "empty response"),
        (
            "preference",
            {"chosen": turns("q", "r"), "rejected": turns("other", "s")},
            "the two transcripts have different prompts",
        ),
        (
            "preference",
            {"chosen": "a\n\nAssistant: c", "rejected": "b\n\nAssistant: r"},
            "the two transcripts have different prompts",
        ),
        (
            "preference",
            {"chosen": turns("q", "r")[1:], "rejected": turns("q", "s")[1:]},
            "the two transcripts have no prompt",
        ),
    ],
)
def test_a_row_with_nothing_to_learn_is_refused(kind, columns, reason):
    with pytest.raises(RefusedRow) as error:
        READ[kind](columns)
    assert str(error.value) == reason


@pytest.mark.parametrize(
    ("label", "said"),
    [
        *[(label, True) for label in (True, 1, 1.0, "true", "True", "YES", " yes ", "1", "1.0")],
        *[(label, False) for label in (False, 0, 0.0, "false", "FALSE", "no", "0", "0.0")],
    ],
)
def test_a_label_that_can_only_mean_one_thing_is_read(label, said):
    assert READ["labelled"]({"prompt": "p", "completion": "c", "label": label}).label is said


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        (2, "2"),
        (-1, "-1"),
        (0.5, "0.5"),
        (float("nan"), "NaN"),
        ("", '""'),
        ("good", '"good"'),
        ([True], "a list of 1"),
        ({}, "an object with keys []"),
    ],
)
def test_any_other_label_is_named(label, shown):
    with pytest.raises(MalformedRow) as error:
        READ["labelled"]({"prompt": "p", "completion": "c", "label": label})
    assert str(error.value) == f"label: got {shown}; need true or false, yes or no, 1 or 0"


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ("0.5", 'score: got "0.5"; need a number'),
        (True, "score: got true; need a number"),
        (float("nan"), "score: got NaN; need a finite number"),
        (float("-inf"), "score: got -Infinity; need a finite number"),
        ([1], "score: got a list of 1; need a number"),
        (-1e39, "score: got -1e+39; need a number up to 3.4e+38 (fp32)"),
    ],
)
@pytest.mark.parametrize("kind", ["scored", "scored_text"])
def test_a_score_is_a_finite_number(kind, score, message):
    with pytest.raises(MalformedRow) as error:
        READ[kind]({"prompt": "p", "completion": "c", "text": "t", "score": score})
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("columns", "kinds"),
    [
        ("text", ["text"]),
        ("text label", ["labelled_text", "text"]),
        ("text score", ["scored_text", "text"]),
        ("text label prompt completion", ["labelled", "labelled_text", "text"]),
        ("prompt completion score", ["scored"]),
        ("messages prompt", ["chat", "prompt", "chat_prompt"]),
        ("prompt completion", ["prompt_completion"]),
        ("prompt completion label", ["labelled"]),
        ("prompt chosen rejected", ["preference"]),
        ("chosen rejected", ["preference"]),
        ("messages prompt chosen rejected score", ["chat", "preference", "chat_prompt"]),
        ("prompt responses scores", ["ranked"]),
        ("prompt id", ["prompt"]),
        ("question answer", []),
    ],
)
def test_the_kind_is_found_from_the_columns(columns, kinds):
    assert [kind.name for kind in match_kinds(set(columns.split()))] == kinds

"""Layouts: what is written is read back as the same record, and nothing else is written."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_cli.data.conversion.convert import Converter, read_back
from rlhf_cli.data.conversion.layouts import LAYOUTS, MARGIN_NOTE
from rlhf_cli.data.conversion.pairs import rank_to_pairs
from rlhf_cli.data.conversion.transcripts import transcript_to_messages
from rlhf_cli.data.records.adapters import adapt_row
from rlhf_cli.data.records.fields import Message
from rlhf_cli.data.records.reader import RecordWithSource
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
from rlhf_cli.data.report import MalformedRow, RefusedRow
from rlhf_cli.data.sources.base import RawRow

quick = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))

# text that no step of reading changes: not blank, no turn marks, no half of a surrogate pair
texts = st.text(st.characters(exclude_categories=["Cs", "Cn"]), min_size=1, max_size=12).filter(
    lambda text: text.strip() and not text.lstrip().startswith(("[", "{", "array"))
)
numbers = st.floats(-1e6, 1e6, width=32)


@st.composite
def prompts(draw):
    """Messages that end with the user's."""
    turns = [Message("system", draw(texts))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        turns += [Message("user", draw(texts)), Message("assistant", draw(texts))]
    return (*turns, Message("user", draw(texts)))


def said(text):
    return (Message("assistant", text),)


def asked(text):
    return (Message("user", text),)


replies = texts.map(said)
pairs = st.lists(texts, min_size=2, max_size=2, unique=True).map(lambda two: [*map(said, two)])
chats = st.builds(lambda prompt, reply: ChatRecord(prompt + reply), prompts(), replies)
preferences = st.builds(lambda p, two: PreferenceRecord(p, *two), prompts(), pairs)
labelled = st.builds(LabelledRecord, prompts(), replies, st.booleans())
rankings = st.builds(
    lambda p, two, low: RankedRecord(p, tuple(two), (low, low + 1)),
    prompts(),
    pairs,
    st.integers(-9, 9).map(float),
)
text_records = (
    st.builds(TextRecord, texts)
    | st.builds(PromptRecord, texts)
    | st.builds(PromptCompletionRecord, texts, texts)
    | st.builds(LabelledRecord, texts, texts, st.booleans())
    | st.builds(ScoredRecord, texts, texts, numbers)
    | st.builds(LabelledRecord, st.just(""), texts, st.booleans())
)
plain = chats | preferences | labelled


@quick
@given(plain | rankings | text_records | st.builds(ScoredRecord, prompts(), replies, numbers))
def test_our_columns_hold_every_record(record):
    assert read_back(LAYOUTS["records"](record)) == record


@pytest.mark.parametrize("layout", ["trl", "sharegpt", "llama_factory"])
@quick
@given(record=plain)
def test_chats_pairs_and_labels_are_the_same_in_every_layout(layout, record):
    written = LAYOUTS[layout](record)
    assert written.record == record
    assert read_back(written) == record
    assert written.notes == ()


@quick
@given(st.builds(lambda p, reply: ChatRecord((Message("user", p), *reply)), texts, replies))
def test_one_question_and_answer_is_the_same_in_alpaca(record):
    written = LAYOUTS["alpaca"](record)
    assert set(written.columns) == {"instruction", "input", "output"}
    assert read_back(written) == record


@quick
@given(texts, texts | st.just(""), texts)
def test_alpaca_rows_come_back_as_they_were(instruction, given_input, output):
    row = {"instruction": instruction, "input": given_input, "output": output}
    columns = adapt_row(row, as_chat=False).columns
    record = PromptCompletionRecord(columns["prompt"], columns["completion"])
    written = LAYOUTS["alpaca"](record)
    assert written.columns == row
    assert read_back(written) == record


@pytest.mark.parametrize("layout", LAYOUTS)
@quick
@given(record=plain | rankings | text_records)
def test_what_is_written_can_be_read(layout, record):
    report = Converter(layout)
    raw, source = RawRow("f", 1, {}), RecordWithSource(record, "f", 1, 0, {"id": "x"})
    for columns in report.convert([(raw, source)]):
        assert columns["id"] == "x"
    assert sum(report.report.written.values()) + len(report.report.left_out) == 1


WITH_TOOLS = Message("user", "p", tools=({"type": "function", "function": {"name": "f"}},))


@pytest.mark.parametrize(
    ("layout", "record", "reason"),
    [
        ("trl", RankedRecord("p", ("a", "b"), (1.0, 2.0)), "pairs=all"),
        ("trl", ScoredRecord("p", "a", 1.0), "a score"),
        ("alpaca", PreferenceRecord(asked("p"), said("a"), said("b")), "to=llama_factory"),
        ("alpaca", ChatRecord(asked("p") + said("a") + asked("q") + said("b")), "several turns"),
        ("sharegpt", PromptRecord("p"), "no columns"),
        ("sharegpt", PromptCompletionRecord("\n\nHuman: a\n\nAssistant:", " b"), "transcripts="),
        ("sharegpt", ChatRecord((*asked("p"), Message("assistant", "a", weight=0))), "weight 0"),
        (
            "llama_factory",
            ChatRecord((*asked("p"), Message("assistant", "a", extra={"reasoning": "r"}))),
            "reasoning",
        ),
        (
            "llama_factory",
            ChatRecord((Message("user", "p", tools=({"x": 1},)), *said("a"))),
            "tools",
        ),
        ("llama_factory", LabelledRecord("", "t", True), "without a prompt"),
    ],
)
def test_what_a_layout_cannot_say_is_refused(layout, record, reason):
    with pytest.raises(RefusedRow, match=reason):
        LAYOUTS[layout](record)


def test_a_margin_that_a_layout_has_no_column_for_is_noted():
    record = PreferenceRecord(asked("p"), said("a"), said("b"), 2.0)
    assert LAYOUTS["sharegpt"](record).notes == (MARGIN_NOTE,)
    assert LAYOUTS["trl"](record).columns["margin"] == 2.0


def test_tools_are_a_column():
    record = ChatRecord((WITH_TOOLS, *said("a")))
    for layout in ("trl", "sharegpt"):
        written = LAYOUTS[layout](record)
        assert "tools" in written.columns
        assert read_back(written) == record


@pytest.mark.parametrize(
    ("choice", "expected", "skipped"),
    [
        ("all", [("b", "c", 2), ("b", "a", 3), ("b", "d", 3), ("c", "a", 1), ("c", "d", 1)], 1),
        ("best_worst", [("b", "d", 3)], 0),
        ("adjacent", [("b", "c", 2), ("c", "a", 1)], 1),
    ],
)
def test_a_ranking_becomes_pairs_with_margins(choice, expected, skipped):
    ranking = RankedRecord("p", ("a", "b", "c", "d"), (1.0, 4.0, 2.0, 1.0))
    pairs, ties = rank_to_pairs(ranking, choice)
    assert [(pair.chosen, pair.rejected, pair.margin) for pair in pairs] == expected
    assert ties == skipped


def test_equal_responses_make_no_pair():
    assert rank_to_pairs(RankedRecord("p", ("a", "a"), (1.0, 2.0)), "all") == ([], 1)


def test_a_transcript_becomes_messages():
    prompt = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    record = PreferenceRecord(prompt, " d", " e\n\nHuman: f\n\nAssistant: g")
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    rejected = (*said("e"), *asked("f"), *said("g"))
    assert transcript_to_messages(record) == PreferenceRecord(turns, said("d"), rejected)
    assert transcript_to_messages(TextRecord("a")) == TextRecord("a")
    with pytest.raises(RefusedRow, match="before its first"):
        transcript_to_messages(PromptCompletionRecord("x" + prompt, "d"))


def completion(text, **facts):
    return {"response": text, **facts}


def test_ultrafeedback_is_a_ranking_by_overall_score_or_mean_rating():
    ratings = {"helpfulness": {"Rating": "4"}, "honesty": {"Rating": "N/A"}, "x": {"Rating": 1}}
    row = {
        "instruction": "p",
        "completions": [
            completion("a", overall_score=7.5, annotations=ratings),
            completion("b", annotations=ratings),
            completion("c", **{"fine-grained_score": "3"}),
        ],
    }
    found = adapt_row(row, as_chat=False).columns
    assert found["prompt"] == [{"role": "user", "content": "p"}]
    assert (found["responses"], found["scores"]) == (["a", "b", "c"], [7.5, 2.5, 3.0])


@pytest.mark.parametrize(
    "bad", [completion("a"), "a", {"overall_score": 1}, completion("a", score=True)]
)
def test_ultrafeedback_without_a_rating_is_malformed(bad):
    with pytest.raises(MalformedRow, match=r"completions\[0\]"):
        adapt_row({"instruction": "p", "completions": [bad]}, as_chat=False)

"""Rows that are left out, chats, columns, and the sample of large files."""

import pytest

from rlhf_cli.data.checks.registry import CHECKS, CODES, checks_to_run, find_all
from tests.data.toy import turns

PAIR = {"prompt": "Tea?", "chosen": " Yes.", "rejected": " No."}


def message(role, content):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("code", "bad"),
    [
        ("chosen-equals-rejected", {**PAIR, "rejected": " Yes."}),
        ("empty-response", {**PAIR, "chosen": "  "}),
        (
            "different-prompts",
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"},
        ),
        ("same-after-truncation", {**PAIR, "chosen": " x" * 99, "rejected": " x" * 98}),
    ],
)
def test_refused_rows_are_reported_by_reason_with_their_place(find, code, bad):
    bad = {"prompt": None, **bad}
    found = find(PAIR, bad, bad, stage="dpo", max_length=64)[code]
    assert (found.count, found.total, found.severity) == (2, 3, "warning")
    assert [one.location for one in found.examples] == ["rows.jsonl:2", "rows.jsonl:3"]
    assert code not in find(PAIR, stage="dpo", max_length=64)


def test_refusals_are_an_error_where_no_row_is_left(find):
    assert find({**PAIR, "rejected": " Yes."}, stage="dpo")["chosen-equals-rejected"].severity == (
        "error"
    )


def test_masks_without_a_token_are_left_out(find):
    good = {"messages": turns("a", "b")}
    found = find(good, {"messages": [message("user", "a")]})
    assert found["empty-mask"].examples[0].location == "rows.jsonl:2"
    assert "empty-mask" not in find(good)


def test_malformed_rows_are_an_error_unless_they_are_tolerated(find):
    found = find(PAIR, "{broken", {"prompt": "a", "chosen": 3, "rejected": "b"}, stage="dpo")
    assert (found["malformed-rows"].count, found["malformed-rows"].severity) == (2, "error")
    assert found["malformed-rows"].examples[0].location == "rows.jsonl:2"
    assert "data.max_bad_rows=2" in found["malformed-rows"].advice
    tolerant = find(PAIR, "{broken", stage="dpo", max_bad_rows=1)
    assert tolerant["malformed-rows"].severity == "warning"


def test_transcripts_that_go_on_differently_are_found(find):
    row = {
        "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
        "rejected": "\n\nHuman: a\n\nAssistant: e\n\nHuman: f\n\nAssistant: g",
    }
    assert find(row, stage="dpo")["several-turns"].severity == "warning"


@pytest.mark.parametrize(
    ("code", "bad", "good"),
    [
        (
            "repeated-roles",
            [message("user", "a"), message("user", "b"), message("assistant", "c")],
            turns("a", "b", "c", "d"),
        ),
        (
            "roles-out-of-order",
            [message("user", "a"), message("system", "b"), message("assistant", "c")],
            [message("system", "b"), *turns("a", "c")],
        ),
        ("last-not-assistant", turns("a", "b", "c"), turns("a", "b")),
        ("empty-messages", turns("a", "b", " ", "d"), turns("a", "b")),
    ],
)
def test_messages_in_a_wrong_order_are_found(find, code, bad, good):
    found = find({"messages": bad})[code]
    assert (found.severity, found.count) == ("warning", 1)
    assert code not in find({"messages": good})


def test_prompts_that_end_with_the_assistant(find):
    bad = {"prompt": turns("a", "b")}
    assert "prompt-ends-with-assistant" in find(bad, stage="ppo")
    assert "prompt-ends-with-assistant" not in find({"prompt": turns("a")}, stage="ppo")


def test_system_prompts_of_some_chats_are_noted(find):
    with_system = {"messages": [message("system", "s"), *turns("a", "b")]}
    found = find(with_system, {"messages": turns("a", "b")})["some-system-prompts"]
    assert (found.count, found.total, found.unit) == (1, 2, "chat")
    assert "some-system-prompts" not in find(with_system)


def test_empty_prompts_are_found(find):
    found = find({"prompt": "", "completion": "a"}, {"prompt": "b", "completion": "c"})
    assert found["empty-prompts"].count == 1
    labelled = [{"text": "a", "label": True}, {"text": "b", "label": False}]
    assert "empty-prompts" not in find(*labelled, stage="reward")


def test_constant_columns_and_long_responses_are_noted(find):
    rows = [{"id": i, "prompt": "Same?", "completion": f" word {i}"} for i in range(30)]
    found = find(*rows, {"id": 30, "prompt": "Same?", "completion": " word" * 300})
    assert [one.location for one in found["constant-columns"].examples] == ["prompt"]
    assert found["unusually-long-responses"].examples[0].location == "rows.jsonl:31"
    ordinary = find(*[{**row, "prompt": f"Same {row['id']}?"} for row in rows])
    assert not {"constant-columns", "unusually-long-responses"} & set(ordinary)


def test_a_sample_is_random_ordered_and_named(read):
    rows = [{"prompt": f"p{i}", "completion": f" c{i}"} for i in range(200)]
    data = read(*rows, max_rows=50)
    lines = [row.line for row in data.rows]
    assert (len(lines), data.rows_total) == (50, 200)
    assert lines == sorted(set(lines))
    assert max(lines) > 150
    assert lines == [row.line for row in read(*rows, max_rows=50).rows]


def test_findings_are_sorted_and_can_be_ignored(read):
    data = read(
        {"prompt": "a", "completion": " caf\ufffd\u00a0"}, {"prompt": "b", "completion": ""}
    )
    codes = [one.code for one in find_all(data)]
    assert codes.index("replacement-characters") < codes.index("unusual-whitespace")
    left = [one.code for one in find_all(data, ignore=["unusual-whitespace"])]
    assert "unusual-whitespace" not in left
    assert "replacement-characters" in left
    assert len(checks_to_run(["double-bos"])) == len(CHECKS) - 1


def test_every_code_is_kebab_case():
    assert all(code == code.lower() and code.replace("-", "").isalnum() for code in CODES)

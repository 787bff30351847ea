"""Pairs, rankings, scores and labels as rows of tokens, id by id."""

import numpy as np
import pytest

from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.dataset import load_examples
from rlhf_cli.data.loader import collate, micro_batches
from rlhf_cli.data.records.types import (
    LabelledRecord,
    PreferenceRecord,
    RankedRecord,
    ScoredRecord,
)
from rlhf_cli.errors import DataError
from tests.data.toy import (
    ASSISTANT,
    BOS,
    EOS,
    NEWLINE,
    TURN,
    USER,
    A,
    B,
    C,
    D,
    E,
    toy_tokenizer,
    turns,
    write_jsonl,
)

ANY = (PreferenceRecord, RankedRecord, ScoredRecord, LabelledRecord)


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def load(tmp_path):
    """Examples and report of some rows in a file."""

    def load(*rows, tokenizer=None, as_messages=False, **settings):
        path = write_jsonl(tmp_path / "r.jsonl", *rows)
        cfg, tokenizer = DataConfig(path=str(path), **settings), tokenizer or toy_tokenizer()
        return load_examples(cfg, "test", tokenizer, ANY, as_messages=as_messages)

    return load


def rows_of(examples):
    """Each row's tokens, and the indices of the trained ones."""
    bounds = zip(examples.row_starts[:-1], examples.row_starts[1:], strict=True)
    return [
        (examples.tokens[s:e].tolist(), np.flatnonzero(examples.loss_mask[s:e]).tolist())
        for s, e in bounds
    ]


def pair(prompt, chosen, rejected, **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def test_a_pair_is_two_rows_the_chosen_first(load):
    examples, report = load(pair("ab", "c", "de", margin=0.5), pair("b", "d", "c"))
    assert rows_of(examples) == [
        ([A, B, C, EOS], [2, 3]),
        ([A, B, D, E, EOS], [2, 3, 4]),
        ([B, D, EOS], [1, 2]),
        ([B, C, EOS], [1, 2]),
    ]
    assert examples.example_starts.tolist() == [0, 2, 4]
    assert examples.columns["score"].tolist() == [0.5, 0, 0, 0]
    assert examples.columns["score"].dtype == np.float32
    assert (report.kind, report.kept, report.examples) == ("preference", 2, 2)
    assert [examples.location(i) for i in (0, 1)] == ["r.jsonl:1", "r.jsonl:2"]


def test_a_ranking_is_a_row_for_each_response_in_its_order(load):
    row = {"prompt": "a", "responses": ["b", "cc", "d"], "scores": [0.5, 2, -1]}
    examples, _ = load(row)
    assert [ids for ids, _ in rows_of(examples)] == [[A, B, EOS], [A, C, C, EOS], [A, D, EOS]]
    assert examples.columns["score"].tolist() == [0.5, 2, -1]
    assert examples.example_starts.tolist() == [0, 3]


@pytest.mark.parametrize(
    ("row", "kind", "score"),
    [
        ({"prompt": "a", "completion": "b", "label": True}, "labelled", 1),
        ({"prompt": "a", "completion": "b", "label": "no"}, "labelled", 0),
        ({"prompt": "a", "completion": "b", "score": -0.5}, "scored", -0.5),
    ],
)
def test_labels_and_scores_stand_beside_the_row(load, row, kind, score):
    examples, report = load(row)
    assert rows_of(examples) == [([A, B, EOS], [1, 2])]
    assert (report.kind, examples.columns["score"].tolist()) == (kind, [score])


@pytest.mark.parametrize(("changes", "first"), [({}, BOS), ({"bos_token": None}, EOS)])
@pytest.mark.parametrize("row", [{"text": "ab"}, {"prompt": "", "completion": "ab"}])
def test_without_a_prompt_all_of_the_text_is_predicted(load, row, changes, first):
    examples, _ = load({**row, "label": 1}, tokenizer=toy_tokenizer(**changes))
    assert rows_of(examples) == [([first, A, B, EOS], [1, 2, 3])]


def test_a_chat_ends_with_the_turn_as_a_generated_response_does(load):
    examples, _ = load(pair(turns("a"), "b", "cd"))
    prompt = [USER, A, TURN, NEWLINE, ASSISTANT]
    assert rows_of(examples) == [
        ([*prompt, B, TURN], [5, 6]),
        ([*prompt, C, D, TURN], [5, 6, 7]),
    ]


def test_responses_of_several_turns_have_one_prompt(load):
    def said(*replies):
        return [{"role": "assistant", "content": r} for r in replies]

    examples, report = load(pair(turns("a"), said("b", "c"), said("dd", "e")), max_length=10)
    assert report.refused == {}
    prompt = [TURN, NEWLINE, ASSISTANT]  # two tokens fewer in both: the longer has twelve
    first, second = rows_of(examples)
    assert first[0] == [*prompt, B, TURN, NEWLINE, ASSISTANT, C, TURN]
    assert second[0] == [*prompt, D, D, TURN, NEWLINE, ASSISTANT, E, TURN]
    assert (first[1], second[1]) == ([3, 4, 7, 8], [3, 4, 5, 8, 9])


LONG = pair("abc", "dddd", "e")  # 8 and 5 tokens with the end


@pytest.mark.parametrize(
    ("policy", "max_length", "bos", "chosen", "rejected", "cut"),
    [
        ("prompt_start", 8, False, [A, B, C, D, D, D, D, EOS], [A, B, C, E, EOS], {}),
        (
            *("prompt_start", 7, False, [B, C, D, D, D, D, EOS], [B, C, E, EOS]),
            {"prompt start": 2},
        ),
        (
            *("prompt_start", 4, False, [C, D, D, D], [C, E, EOS]),
            {"prompt start": 4, "response end": 2},
        ),
        (
            *("prompt_start", 7, True, [BOS, C, D, D, D, D, EOS], [BOS, C, E, EOS]),
            {"prompt start": 4},
        ),
        (
            *("response_end", 5, False, [A, B, C, D, D], [A, B, C, E, EOS]),
            {"response end": 3},
        ),
    ],
)
def test_a_pair_is_cut_alike(load, policy, max_length, bos, chosen, rejected, cut):
    examples, report = load(
        LONG,
        tokenizer=toy_tokenizer(adds_bos=bos),
        max_length=max_length,
        truncation=policy,
    )
    assert [ids for ids, _ in rows_of(examples)] == [chosen, rejected]
    assert {end: (cuts.rows, cuts.tokens) for end, cuts in report.cut.items()} == {
        end: (1, tokens) for end, tokens in cut.items()
    }


@pytest.mark.parametrize(
    ("row", "reason", "settings"),
    [
        (pair("a", "b", "b"), "chosen equals rejected", {}),
        (pair("a", "b", "b<eos>"), "all responses have the same tokens", {}),
        (
            pair("a", "bbc", "bbd"),
            "all responses are the same within data.max_length=3 tokens",
            {"max_length": 3},
        ),
        (pair("a", "", "b"), "empty response", {}),
        (pair("a", "<eos>", "b"), "only end or pad tokens to train", {}),
        (
            pair("abc", "d", "e"),
            "no response within data.max_length=3 tokens",
            {"max_length": 3, "truncation": "response_end"},
        ),
        (
            pair("a", "b", "cc"),
            "longer than data.max_length=3 (data.truncation=refuse)",
            {"max_length": 3, "truncation": "refuse"},
        ),
        (
            {"chosen": turns("a", "b"), "rejected": turns("c", "d")},
            "the two transcripts have different prompts",
            {},
        ),
        (
            {"prompt": "a", "responses": ["b", "c"], "scores": [1, 1]},
            "all scores are equal",
            {},
        ),
        ({"prompt": "a", "responses": ["b"], "scores": [1]}, "only one response", {}),
    ],
)
def test_an_example_is_refused_whole_and_named(load, row, reason, settings):
    with pytest.raises(DataError) as error:
        load(row, **settings)
    assert str(error.value).splitlines() == [
        "r.jsonl: none of 1 row can be trained on",
        f"  refused: 1 row, {reason}; the first is r.jsonl:1",
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "responses": ["b", "c"], "scores": [1]}, "scores: got 2 responses and 1"),
        ({"prompt": "a", "completion": "b", "label": "good"}, 'label: got "good"; need true or'),
        ({"prompt": "a", "completion": "b", "score": "0.5"}, 'score: got "0.5"; need a number'),
        (pair("a", "b", "c", margin="much"), 'margin: got "much"; need a number'),
    ],
)
def test_a_wrong_value_stops_the_run_with_its_line(load, row, message):
    with pytest.raises(DataError, match=r"r\.jsonl:1: " + message.replace('"', '\\"')):
        load(row)


def test_a_template_that_writes_another_prompt_for_a_response_is_refused(load):
    # the number of messages stands in front: one reply and two have different prompts
    template = "{{ 'a' * messages|length }}" + toy_tokenizer().chat_template
    one = [{"role": "assistant", "content": "b"}]
    with pytest.raises(DataError, match="the chat template"):
        load(pair(turns("a"), one, [*one, *one]), tokenizer=toy_tokenizer(template))


def test_preference_data_are_never_packed_and_their_prompts_never_trained(load):
    rows = [pair("a", "b", "c"), pair("a", "d", "e")]
    plain, _ = load(*rows)
    other, _ = load(*rows, packing=True, train_on="all")
    assert rows_of(other) == rows_of(plain)
    assert other.example_starts.tolist() == [0, 2, 4]


def test_scores_come_back_from_the_cache(load, capsys):
    row = {"text": "ab", "score": 0.25}
    examples, _ = load(row)
    again, _ = load(row)
    assert "tokens from the cache" in capsys.readouterr().err
    assert again.columns["score"].tolist() == examples.columns["score"].tolist() == [0.25]


def test_columns_follow_their_rows_through_batches_and_splits(load):
    examples, _ = load(
        {"prompt": "a", "responses": ["b", "ccc"], "scores": [3, 4]},
        {"prompt": "a", "responses": ["bbbb", "c", "d"], "scores": [5, 6, 7]},
    )
    rows = collate(examples, [1, 0])
    assert rows.columns["score"].tolist() == [5, 6, 7, 3, 4]
    assert rows.example_of_row.tolist() == [1, 1, 1, 0, 0]
    assert {name: rows.count[name] for name in ("rows", "examples")} == {"rows": 5, "examples": 2}
    assert [part.columns["score"].tolist() for part in rows.split()] == [[5, 6, 7], [3, 4]]
    assert rows.to("cpu").columns["score"].tolist() == [5, 6, 7, 3, 4]
    passes = micro_batches(examples, [0, 1], max_tokens=1)
    assert [part.columns["score"].tolist() for part in passes] == [[5, 6, 7], [3, 4]]


TEXT_AND_MESSAGES = (
    (pair("ab", "c", " de"), pair(turns("ab"), "c", " de")),
    (
        {"prompt": "a", "responses": ["b", "c"], "scores": [1, 2]},
        {"prompt": turns("a"), "responses": ["b", "c"], "scores": [1, 2]},
    ),
    (
        {"prompt": "a", "completion": "b", "label": True},
        {"prompt": turns("a"), "completion": "b", "label": True},
    ),
    (
        {"prompt": "a", "completion": "b", "score": 2},
        {"prompt": turns("a"), "completion": "b", "score": 2},
    ),
)


@pytest.mark.parametrize(("text", "messages"), TEXT_AND_MESSAGES)
def test_text_as_messages_has_the_tokens_of_messages(load, text, messages):
    """And none of those that joining it as it stands gives, although these are in the cache."""
    joined = load(text)
    chat, report = load(text, as_messages=True)
    assert rows_of(chat) == rows_of(load(messages)[0])
    assert rows_of(chat) != rows_of(joined[0])
    assert (report.templated, joined[1].templated) == (True, False)
    assert rows_of(load(text)[0]) == rows_of(joined[0])


@pytest.mark.parametrize("prompt", ["", "\n\nHuman: a\n\nAssistant:"])
def test_a_text_that_is_no_single_message_is_refused_as_messages(load, prompt):
    row = {"prompt": prompt, "completion": "b", "label": True}
    with pytest.raises(DataError, match="of which template=always makes"):
        load(row, as_messages=True)
    load(row)

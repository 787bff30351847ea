"""Pairs, rankings, labels, and rows that occur twice."""

import random
import time

import pytest

from rlhf_cli.data.checks import shingles
from tests.data.toy import write_jsonl

WORDS = [f"w{i}" for i in range(400)]


def sentence(seed, words=40):
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def pair(i, chosen, rejected, **more):
    return {"prompt": f"question {i}?", "chosen": f" {chosen}", "rejected": f" {rejected}", **more}


def test_chosen_responses_that_are_longer_are_a_bias(find):
    rows = [pair(i, f"a b c d e {i}", f"a {i}") for i in range(60)]
    found = find(*rows, stage="dpo")["length-bias"]
    assert found.severity == "warning"
    assert "longer one in 100 %" in found.message
    assert "loss_type=sigmoid_norm" in found.advice
    swapped = [pair(i, f"a {i}", f"a b c d e {i}") for i in range(60)]
    assert "shorter one in 100 %" in find(*swapped, stage="dpo")["length-bias"].message
    assert "length-bias" not in find(*rows[:30], *swapped[30:], stage="dpo")
    assert "length-bias" not in find(*rows[:10], stage="dpo")  # too few to tell


def test_rankings_by_length_are_a_bias(find):
    rows = [
        {"prompt": f"q{i}", "responses": [" a", " a b c", " a b c d e"], "scores": [0, 1, 2]}
        for i in range(60)
    ]
    assert find(*rows, stage="reward")["length-bias"].severity == "warning"
    even = [{**row, "scores": [1, 2, 0] if i % 2 else [1, 0, 2]} for i, row in enumerate(rows)]
    assert "length-bias" not in find(*even, stage="reward")


def test_labels_that_follow_length_are_a_bias(find):
    rows = [
        {"prompt": f"q{i}", "completion": " a" * (9 if i % 2 else 2), "label": bool(i % 2)}
        for i in range(60)
    ]
    assert find(*rows, stage="bco")["length-bias"].severity == "warning"
    even = [{**row, "completion": " a" * (1 + i // 2 % 9)} for i, row in enumerate(rows)]
    assert "length-bias" not in find(*even, stage="bco")


def test_pairs_that_hardly_differ_are_found(find):
    assert find(pair(1, "Yes!", "yes."), stage="dpo")["nearly-equal-pairs"].count == 1
    assert "nearly-equal-pairs" not in find(pair(1, "Yes!", "No!"), stage="dpo")


@pytest.mark.parametrize(
    ("margins", "code", "severity"),
    [
        ([-1.0, 2.0, 3.0], "negative-margins", "warning"),
        ([-1.0, -2.0, 3.0], "negative-margins", "error"),
        ([0.0, 2.0, 3.0], "zero-margins", "note"),
        ([1.0] * 30, "constant-margins", "note"),
    ],
)
def test_margins_that_say_the_opposite_or_nothing(find, margins, code, severity):
    rows = [pair(i, f"a {i}", f"b {i}", margin=margin) for i, margin in enumerate(margins)]
    assert find(*rows, stage="dpo")[code].severity == severity
    good = [pair(i, f"a {i}", f"b {i}", margin=1.0 + i) for i in range(len(margins))]
    assert code not in find(*good, stage="dpo")


def test_tied_scores_are_noted(find):
    row = {"prompt": "q", "responses": [" a", " b", " c"], "scores": [1, 1, 2]}
    found = find(row, stage="reward")["tied-scores"]
    assert "33.3 %" in found.message
    assert "tied-scores" not in find({**row, "scores": [1, 3, 2]}, stage="reward")


def label_rows(good, bad):
    labels = [True] * good + [False] * bad
    return [
        {"prompt": f"q{i}", "completion": f" {sentence(i, 5)}", "label": label}
        for i, label in enumerate(labels)
    ]


def test_an_imbalance_of_labels_names_the_weight_to_set(find):
    found = find(*label_rows(40, 8), stage="bco")["label-imbalance"]
    assert "undesirable_weight=5 " in found.advice
    weighed = find(*label_rows(40, 8), stage="bco", keys={"undesirable_weight": 5.0})
    assert "label-imbalance" not in weighed
    assert "label-imbalance" not in find(*label_rows(10, 9), stage="bco")
    reward = find(*label_rows(40, 8), stage="reward")["label-imbalance"]
    assert "undesirable_weight" not in reward.advice


def test_one_label_alone_is_an_error_of_bco(find):
    assert find(*label_rows(5, 0), stage="bco")["one-label"].severity == "error"
    assert "one-label" not in find(*label_rows(5, 4), stage="bco")


def test_scores_that_never_differ_are_an_error(find):
    rows = [{"prompt": f"q{i}", "completion": f" {i}", "score": 1.0} for i in range(3)]
    assert find(*rows, stage="reward")["constant-scores"].severity == "error"
    assert "constant-scores" not in find({**rows[0], "score": 2}, *rows, stage="reward")


def completion(text, prompt="Say."):
    return {"prompt": prompt, "completion": f" {text}"}


def test_equal_and_nearly_equal_rows_are_told_apart(find):
    one = sentence(1, 60)
    changed = one.split(" ")
    changed[30] = "other"
    rows = [
        completion(one),
        completion(sentence(2)),
        completion(one),
        completion(" ".join(changed)),
        completion("Yes please!"),
        completion("yes, please"),
        completion("yes, thanks"),
    ]
    found = find(*rows)
    assert [one.location for one in found["duplicate-rows"].examples] == ["rows.jsonl:3"]
    assert {one.location for one in found["near-duplicates"].examples} == {
        "rows.jsonl:4",
        "rows.jsonl:6",
    }
    assert not {"duplicate-rows", "near-duplicates"} & set(find(*rows[:2], rows[6]))


def test_a_long_shared_prompt_does_not_make_rows_similar(find):
    prompt = sentence(3, 300)
    rows = [completion(sentence(i, 8), prompt) for i in range(10)]
    assert "near-duplicates" not in find(*rows)


def test_contradictions_are_found(find):
    rows = [pair(1, "a", "b"), pair(1, "b", "a"), pair(2, "a", "b")]
    assert find(*rows, stage="dpo")["contradictory-pairs"].count == 1
    assert "contradictory-pairs" not in find(rows[0], rows[2], stage="dpo")
    row = {**completion("a"), "label": True}
    found = find(row, {**row, "label": False}, stage="bco")
    assert found["contradictory-labels"].examples[0].location == "rows.jsonl:2"
    assert "contradictory-labels" not in find(row, {**row, "completion": " b"}, stage="bco")


def test_held_out_rows_that_are_trained_on_are_found(find, tmp_path):
    train = [completion(sentence(i, 30), f"Tell me about thing {i}.") for i in range(20)]
    held_out = [
        train[3],
        completion(sentence(99, 30), "tell me about thing 5"),
        completion(sentence(98, 30), "Something new and different."),
    ]
    path = write_jsonl(tmp_path / "held_out.jsonl", *held_out)
    found = find(*train, eval=str(path))
    rows, prompts = found["eval-rows-in-training"], found["eval-prompts-in-training"]
    assert (rows.count, rows.total, rows.severity) == (1, 3, "error")
    assert rows.examples[0].location == "held_out.jsonl:1"
    assert "rows.jsonl:4" in rows.examples[0].text
    assert [one.location for one in prompts.examples] == ["held_out.jsonl:2"]
    clean = write_jsonl(tmp_path / "clean.jsonl", held_out[2])
    assert not {"eval-rows-in-training", "eval-prompts-in-training"} & set(
        find(*train, eval=str(clean))
    )


def test_rows_held_out_of_the_file_are_not_compared_with_themselves(find):
    rows = [completion(sentence(i, 30), f"Tell me about thing {i}.") for i in range(20)]
    assert "eval-rows-in-training" not in find(*rows, eval=0.2)
    assert "eval-rows-in-training" in find(*rows, *rows, eval=0.2)


def test_similar_texts_become_candidates_and_others_do_not():
    base = sentence(1, 100).split(" ")
    texts = [" ".join(base), " ".join([*base[:50], "new", *base[51:]]), sentence(2, 100), "a b"]
    found = shingles.hash_shingles(texts)
    assert found.similarity(0, 1) == pytest.approx(91 / 101)  # 96 shingles each, 5 of them differ
    assert found.similarity(0, 2) == 0
    assert found.similarity(3, 3) == 0
    assert (0, 1) in list(shingles.candidate_pairs(found))
    assert all(2 not in both for both in shingles.candidate_pairs(found))


def test_many_equal_texts_give_few_pairs():
    found = shingles.hash_shingles([sentence(1, 30)] * 500)
    assert len(list(shingles.candidate_pairs(found))) < 1000


@pytest.mark.slow
def test_50000_short_rows_take_less_than_10_seconds():
    texts = [sentence(i, 40) for i in range(50_000)]
    start = time.process_time()
    found = shingles.hash_shingles(texts)
    assert not list(shingles.candidate_pairs(found))
    assert time.process_time() - start < 10

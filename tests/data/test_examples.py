import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_cli.data.examples import (
    Examples,
    add_mismatched_responses,
    count_classes,
    unpair_examples,
)
from rlhf_cli.data.loader import collate
from rlhf_cli.errors import DataError


def examples_of(*examples, scores):
    """Each example a list of rows; a row is (prompt ids, response ids)."""
    rows = [row for example in examples for row in example]
    tokens = [token for prompt, response in rows for token in prompt + response]
    trained = [flag for p, r in rows for flag in [False] * len(p) + [True] * len(r)]
    return Examples(
        np.array(tokens, np.int32),
        np.array(trained),
        np.cumsum([0, *(len(p) + len(r) for p, r in rows)]),
        np.cumsum([0, *map(len, examples)]),
        ("a.jsonl",),
        np.array([[0, line] for line in range(1, len(examples) + 1)]),
        {"score": np.array(scores, np.float32)},
    )


PAIRS = examples_of(
    [([1, 2], [3, 9]), ([1, 2], [4, 4, 9])],
    [([5], [6, 9]), ([5], [7, 9])],
    scores=[0.7, 0.0, 0.0, 0.0],
)


def test_pairs_are_taken_apart():
    rows = unpair_examples(PAIRS)
    assert len(rows) == 4
    assert rows.columns["score"].tolist() == [1, 0, 1, 0]
    assert [rows.location(i) for i in range(4)] == ["a.jsonl:1"] * 2 + ["a.jsonl:2"] * 2
    assert collate(rows, [1]).tokens.tolist() == [1, 2, 4, 4, 9]
    assert count_classes(rows) == (2, 2)


def test_each_prompt_gets_the_next_response():
    single = examples_of([([1, 2], [3, 9])], [([5], [6, 6, 6, 9])], scores=[1, 0])
    both = add_mismatched_responses(single, max_length=5)
    rows = collate(both, [0, 1])
    assert rows.lengths.tolist() == [4, 5, 5, 3]
    assert rows.tokens.tolist() == [1, 2, 3, 9, 1, 2, 6, 6, 6, 5, 6, 6, 6, 9, 5, 3, 9]
    assert rows.columns["score"].tolist() == [1, 1, 0, 0]
    assert rows.example_of_row.tolist() == [0, 0, 1, 1]
    assert rows.targets.tolist() == [3, 9, 6, 6, 6, 6, 6, 6, 9, 3, 9]


def test_a_pair_that_was_taken_apart_gets_responses_to_other_prompts():
    both = add_mismatched_responses(unpair_examples(PAIRS), max_length=9)
    second = [collate(both, [i]).tokens[collate(both, [i]).lengths[0] :].tolist() for i in range(4)]
    assert second == [[1, 2, 6, 9], [1, 2, 7, 9], [5, 3, 9], [5, 4, 4, 9]]


def test_with_one_prompt_for_all_rows_the_next_response_is_taken():
    same = examples_of(*([([1], [answer])] for answer in (2, 3, 4)), scores=[1, 0, 1])
    rows = collate(add_mismatched_responses(same, 9), [0, 1, 2])
    assert rows.targets.tolist() == [2, 3, 3, 4, 4, 2]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.integers(3, 6))
def test_every_response_is_given_away_once_within_the_length(prompts, max_length):
    single = examples_of(
        *([([p + 1] * 2, [10 + i, 99, 99])] for i, p in enumerate(prompts)),
        scores=[0] * len(prompts),
    )
    both = add_mismatched_responses(single, max_length)
    assert np.diff(both.row_starts).max() <= max_length
    rows = collate(both, range(len(prompts)))
    given_away = [int(t) for t in rows.targets if t < 99]
    own, others = given_away[::2], given_away[1::2]
    assert own == sorted(others) == [10 + i for i in range(len(prompts))]
    assert not set(zip(own, others, strict=True)) & {(i, i) for i in own}


def test_one_row_is_refused():
    one = examples_of([([1], [2])], scores=[1])
    with pytest.raises(DataError, match="only row"):
        add_mismatched_responses(one, 9)

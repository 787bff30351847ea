import numpy as np
import pytest

from rlhf_cli.data.arrange import count_classes, mismatch, unpair
from rlhf_cli.data.examples import Examples
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
    rows = unpair(PAIRS)
    assert len(rows) == 4
    assert rows.columns["score"].tolist() == [1, 0, 1, 0]
    assert [rows.where(i) for i in range(4)] == ["a.jsonl:1"] * 2 + ["a.jsonl:2"] * 2
    assert collate(rows, [1]).tokens.tolist() == [1, 2, 4, 4, 9]
    assert count_classes(rows) == (2, 2)


def test_each_prompt_gets_the_next_response():
    single = examples_of([([1, 2], [3, 9])], [([5], [6, 6, 6, 9])], scores=[1, 0])
    both = mismatch(single, max_length=5)
    rows = collate(both, [0, 1])
    assert rows.lengths.tolist() == [4, 5, 5, 3]
    assert rows.tokens.tolist() == [1, 2, 3, 9, 1, 2, 6, 6, 6, 5, 6, 6, 6, 9, 5, 3, 9]
    assert rows.columns["score"].tolist() == [1, 1, 0, 0]
    assert rows.example_of_row.tolist() == [0, 0, 1, 1]
    assert rows.targets.tolist() == [3, 9, 6, 6, 6, 6, 6, 6, 9, 3, 9]


def test_one_class_or_one_row_is_refused():
    one = examples_of([([1], [2])], scores=[1])
    with pytest.raises(DataError, match=r"a\.jsonl:1 and all other rows have label true"):
        count_classes(one)
    with pytest.raises(DataError, match="only row"):
        mismatch(one, 9)

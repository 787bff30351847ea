import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rlhf_cli.data.tokens.encode import TokenRow
from rlhf_cli.data.tokens.packing import (
    ExampleRow,
    pack_rows,
    split_and_pack_documents,
    split_documents,
)

LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=20)


def documents(lengths):
    """Rows whose tokens are all different, every token but the first trained."""
    starts = np.cumsum([0, *lengths])
    for line, length in enumerate(lengths, start=1):
        tokens = np.arange(length, dtype=np.int32) + np.int32(starts[line - 1])
        trained = np.arange(length) > 0
        yield ExampleRow(TokenRow(tokens, trained), "d.txt", line)


def trained_tokens(examples):
    rows = [source.row for example in examples for source in example]
    return [int(token) for row in rows for token in row.tokens[row.loss_mask]]


def shown(examples):
    return [[source.row.tokens.tolist() for source in example] for example in examples]


def test_a_cut_document_repeats_its_last_token_as_context():
    examples = list(split_documents(documents([6, 2]), max_length=3))
    assert shown(examples) == [[[0, 1, 2]], [[2, 3, 4]], [[4, 5]], [[6, 7]]]
    assert [example[0].row.loss_mask.tolist() for example in examples][1] == [False, True, True]
    assert [example[0].line for example in examples] == [1, 1, 1, 2]


def test_documents_fill_examples_and_stay_rows_of_their_own():
    examples = list(split_and_pack_documents(documents([3, 4, 4]), max_length=5))
    assert shown(examples) == [[[0, 1, 2], [3, 4]], [[4, 5, 6], [7, 8]], [[8, 9, 10]]]


def test_a_single_token_is_no_row():
    examples = list(split_and_pack_documents(documents([4, 3]), max_length=5))
    assert shown(examples) == [[[0, 1, 2, 3]], [[4, 5, 6]]]


@given(lengths=LENGTHS, max_length=st.integers(2, 17))
def test_cutting_trains_every_token_of_a_document_once_and_in_order(lengths, max_length):
    everything = trained_tokens([list(documents(lengths))])
    for arrange in (split_documents, split_and_pack_documents):
        examples = list(arrange(documents(lengths), max_length))
        assert trained_tokens(examples) == everything
        assert not any(source.row.loss_mask[0] for example in examples for source in example)
        assert all(len(source) >= 2 for example in examples for source in example)


@given(lengths=LENGTHS, max_length=st.integers(2, 17))
def test_packed_examples_are_full_but_the_last(lengths, max_length):
    examples = list(split_and_pack_documents(documents(lengths), max_length))
    sizes = [sum(map(len, example)) for example in examples]
    assert all(size in (max_length - 1, max_length) for size in sizes[:-1])
    assert sizes[-1] <= max_length


@given(lengths=LENGTHS)
def test_whole_rows_are_packed_in_order_and_not_cut(lengths):
    examples = list(pack_rows(documents(lengths), max_length=40))
    assert [len(source) for example in examples for source in example] == lengths
    sizes = [sum(map(len, example)) for example in examples]
    assert max(sizes) <= 40
    following = [len(example[0]) for example in examples[1:]]
    assert all(size + n > 40 for size, n in zip(sizes, following, strict=False))

import json
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.examples import flatten
from rlhf_cli.data.loader import ExampleLoader, collate, eval_batches, micro_batches
from rlhf_cli.data.tokens.encode import TokenRow
from rlhf_cli.data.tokens.packing import ExampleRow
from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.errors import CheckpointError, DataError
from rlhf_cli.train.config import TrainConfig


def examples_of(*examples, trained_from=1):
    """Examples of rows of tokens; trained from an index on."""

    def source(tokens, line):
        trained = np.arange(len(tokens)) >= trained_from
        return ExampleRow(TokenRow(np.array(tokens, np.int32), trained), "r.jsonl", line)

    made = ([source(row, line) for row in rows] for line, rows in enumerate(examples, start=1))
    return flatten(made, ("r.jsonl",))


def of_lengths(*lengths):
    return examples_of(*([[10 * i] * length] for i, length in enumerate(lengths)))


def source(count=7, *, seed=3, shuffle=True, **train):
    train = {"batch_size": 3, **train}
    data = DataConfig(shuffle=shuffle)
    examples = of_lengths(*[2] * count)
    return ExampleLoader(examples, data, TrainConfig(**train), seed, micro_batch_tokens=100)


def drawn(steps):
    """The examples of each step."""
    return [sorted(int(i) for rows in step for i in rows.example_of_row) for step in steps]


def test_collate_puts_rows_one_after_another():
    examples = examples_of([[1, 2, 3]], [[4, 5], [6, 7, 8]], [[9, 9]], trained_from=1)
    rows = collate(examples, [1, 0])
    assert rows.tokens.tolist() == [4, 5, 6, 7, 8, 1, 2, 3]
    assert rows.lengths.tolist() == [2, 3, 3]
    assert rows.scored.tolist() == [0, 2, 3, 5, 6]
    assert rows.targets.tolist() == [5, 7, 8, 2, 3]
    assert rows.example_of_row.tolist() == [1, 1, 0]
    assert examples.location(1) == "r.jsonl:2"


def test_the_position_before_a_trained_token_is_scored():
    rows = collate(examples_of([[1, 2, 3, 4]], trained_from=3), [0])
    assert rows.scored.tolist() == [2]
    assert rows.targets.tolist() == [4]


def test_micro_batches_hold_rows_of_like_length_and_a_long_one_stands_alone():
    parts = micro_batches(of_lengths(2, 9, 4, 3, 4), [0, 1, 2, 3, 4], max_tokens=8)
    assert [part.example_of_row.tolist() for part in parts] == [[1], [2, 4], [3, 0]]


@given(st.lists(st.integers(2, 12), min_size=1, max_size=30), st.integers(1, 40), st.randoms())
def test_micro_batches_hold_every_example_once_within_the_limit(lengths, most, random):
    examples = of_lengths(*lengths)
    indices = list(range(len(lengths)))
    parts = micro_batches(examples, indices, most)
    found = [part.example_of_row.tolist() for part in parts]
    assert sorted(i for part in found for i in part) == indices
    assert all(len(part.tokens) <= most or len(part.lengths) == 1 for part in parts)
    random.shuffle(indices)
    shuffled = micro_batches(examples, indices, most)
    assert [part.example_of_row.tolist() for part in shuffled] == found


def test_eval_batches_are_all_examples_in_a_fixed_order():
    examples = of_lengths(3, 5, 4)
    orders = [[r.example_of_row.tolist() for r in eval_batches(examples, 8)] for _ in range(2)]
    assert orders == [[[1], [2, 0]]] * 2


def test_every_example_is_drawn_once_an_epoch_and_the_last_step_takes_what_is_left():
    steps = drawn(source(epochs=2))
    assert [len(step) for step in steps] == [3, 3, 1, 3, 3, 1]
    assert sorted(chain(*steps[:3])) == sorted(chain(*steps[3:])) == list(range(7))
    assert steps[:3] != steps[3:]


def test_the_order_depends_on_the_seed_alone():
    assert drawn(source()) == drawn(source())
    assert drawn(source(40)) != drawn(source(40, seed=4))


def test_without_shuffling_the_order_is_the_file_s():
    assert drawn(source(shuffle=False, epochs=2)) == [[0, 1, 2], [3, 4, 5], [6]] * 2


@pytest.mark.parametrize(("max_steps", "total"), [(0, 6), (2, 2), (11, 11)])
def test_max_steps_decides_where_it_is_given(max_steps, total):
    made = source(epochs=2, max_steps=max_steps)
    assert made.total_steps == total
    assert len(list(made)) == total
    assert made.next_step() is None


@pytest.mark.parametrize("done", range(7))
def test_a_resumed_run_takes_the_steps_that_are_left(done):
    whole, first, second = (source(epochs=2) for _ in range(3))
    for _ in range(done):
        first.next_step()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert drawn(second) == drawn(whole)[done:]


def test_a_resumed_run_needs_the_data_and_batch_size_of_its_checkpoint():
    state = source(7).state_dict()
    with pytest.raises(CheckpointError, match=r"written with 7 examples and there are 8 now"):
        source(8).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"written with 3 batch_size and there are 2 now"):
        source(7, batch_size=2).load_state_dict(state)


def test_no_example_is_an_error():
    with pytest.raises(DataError, match="no examples to train on"):
        ExampleLoader(flatten([], ()), DataConfig(), TrainConfig(), 0, 10)


@given(
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=20),
    size=st.integers(1, 4),
    batch_size=st.integers(1, 8),
)
def test_ranks_deal_out_the_step_of_one_process(lengths, size, batch_size):
    """Every example is with one rank, and none has more than the longest more than another."""

    def steps(ranks):
        train = TrainConfig(batch_size=batch_size)
        examples = of_lengths(*lengths)
        return list(ExampleLoader(examples, DataConfig(), train, 3, 40, ranks))

    whole = drawn(steps(Ranks()))
    dealt = [steps(Ranks(rank, size)) for rank in range(size)]
    assert [len(of_rank) for of_rank in dealt] == [len(whole)] * size
    for step, parts in zip(whole, zip(*dealt, strict=True), strict=True):
        assert sorted(chain.from_iterable(drawn(parts))) == step
        work = [sum(len(rows.tokens) for rows in part) for part in parts]
        assert max(work) - min(work) <= max(lengths)


def test_evaluation_batches_are_dealt_out():
    examples = of_lengths(9, 8, 7, 6, 5)
    whole = [rows.example_of_row.tolist() for rows in eval_batches(examples, 10)]
    dealt = [
        [rows.example_of_row.tolist() for rows in eval_batches(examples, 10, Ranks(rank, 2))]
        for rank in (0, 1)
    ]
    assert dealt == [whole[::2], whole[1::2]]

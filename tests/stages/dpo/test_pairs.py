"""The best and the worst response to a prompt."""

import numpy as np
import pytest
import torch

from rlhf_cli.rollout.response import Response
from rlhf_cli.stages.dpo.pairs import rank_pairs
from rlhf_cli.stages.rollouts.rows import response_examples


def responses(*tokens: list[int]) -> list[Response]:
    return [Response(k, 0, [1, 2], ids, True) for k, ids in enumerate(tokens)]


def test_the_best_and_the_worst_of_each_prompt():
    written = responses([3], [4], [5], [6], [7], [8])
    pairs = rank_pairs(written, torch.tensor([0.5, 2.0, -1.0, 1.0, 3.0, 2.0]), 3)
    assert [(pair.chosen.token_ids, pair.rejected.token_ids) for pair in pairs] == [
        ([4], [5]),
        ([7], [6]),
    ]
    assert [pair.margin for pair in pairs] == [3.0, 2.0]
    assert not any(pair.is_tie for pair in pairs)


@pytest.mark.parametrize(
    ("scores", "chosen", "rejected"),
    [([1.0, 1.0, 0.0, 0.0], 0, 3), ([0.0, 1.0, 1.0, 0.0], 1, 3), ([2.0, 2.0, 2.0, 2.0], 0, 3)],
)
def test_of_equal_scores_the_first_is_best_and_the_last_is_worst(scores, chosen, rejected):
    [pair] = rank_pairs(responses([3], [4], [5], [6]), torch.tensor(scores), 4)
    assert (pair.chosen.index, pair.rejected.index) == (chosen, rejected)


@pytest.mark.parametrize(
    ("tokens", "scores", "tie"),
    [
        (([3], [4]), [1.0, 1.0], True),
        (([3], [3]), [1.0, 0.0], True),  # a judge that is not the same each time
        (([3], [4]), [1.0, 0.0], False),
        (([3], [3, 4]), [0.0, 1e-6], False),
    ],
)
def test_a_tie_prefers_nothing(tokens, scores, tie):
    [pair] = rank_pairs(responses(*tokens), torch.tensor(scores), 2)
    assert pair.is_tie == tie


def test_a_pair_is_an_example_of_two_rows():
    chosen, rejected = responses([3, 4, 9], [5])
    examples = response_examples([(chosen, rejected), (rejected, chosen)])
    assert examples.tokens.tolist() == [1, 2, 3, 4, 9, 1, 2, 5, 1, 2, 5, 1, 2, 3, 4, 9]
    assert examples.loss_mask.tolist() == [
        *(False, False, True, True, True),
        *(False, False, True),
        *(False, False, True),
        *(False, False, True, True, True),
    ]
    assert examples.row_starts.tolist() == [0, 5, 8, 11, 16]
    assert examples.example_starts.tolist() == [0, 2, 4]


def test_no_pair_is_no_example():
    examples = response_examples([])
    assert len(examples) == 0
    assert examples.tokens.dtype == np.int32

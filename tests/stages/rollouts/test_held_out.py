"""Responses to held-out prompts, of several ranks."""

import pytest
import torch

from rlhf_cli.errors import InferenceServerError, RankFailed
from rlhf_cli.stages.rollouts.held_out import HeldOutPrompts
from tests.thread_ranks import on_ranks


class Worker:
    """Generates on rank 0 alone."""

    def __init__(self, rank):
        self.rank, self.prompts = rank, range(4)

    def generate(self, indices, positions, step):
        if self.rank:
            raise InferenceServerError("no better")
        return []


def test_where_a_rank_fails_none_waits_for_its_scores():
    def act(ranks):
        held_out = HeldOutPrompts(Worker(ranks.rank), None, lambda _: torch.zeros(0), ranks)
        with pytest.raises((InferenceServerError, RankFailed)) as caught:
            held_out.measure()
        assert ranks.any(caught.type is InferenceServerError)  # what the loop asks next
        return caught.type

    assert on_ranks(2, act) == [RankFailed, InferenceServerError]

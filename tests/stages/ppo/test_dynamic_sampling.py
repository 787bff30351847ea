"""Groups of equal scores are replaced by those of other prompts."""

from types import SimpleNamespace

import pytest
import torch

from rlhf_cli import cli
from rlhf_cli.data.config import DataConfig
from rlhf_cli.distributed.ranks import SINGLE_PROCESS
from rlhf_cli.errors import InferenceServerError, RankFailed
from rlhf_cli.rewards.rewards import Scores
from rlhf_cli.rollout.response import Response
from rlhf_cli.stages.ppo import dynamic_sampling
from rlhf_cli.stages.ppo.dynamic_sampling import DynamicSampling
from tests.stages.ppo.conftest import words_of
from tests.thread_ranks import on_ranks

COUNT, SAMPLES, TOTAL = 12, 2, 5


class Worker:
    """Responses that tell their prompt; `asked` has prompts, places and number of each call."""

    samples = SAMPLES
    prompt_ids = [[k] for k in range(COUNT)]  # noqa: RUF012
    prompts = prompt_ids

    def __init__(self, fails=False):
        self.asked, self.fails = [], fails

    def generate(self, indices, positions, step):
        self.asked.append(([*indices], [*positions], step))
        if self.fails:
            raise InferenceServerError("no better")
        return [
            Response(index=place * SAMPLES + k, prompt_index=index, prompt_ids=[index])
            for index, place in zip(indices, positions, strict=True)
            for k in range(SAMPLES)
        ]


@pytest.fixture
def equal(monkeypatch):
    """Prompts whose responses have equal scores; the others have 0 and 1."""
    chosen = set()

    def score(_rewards, _prompts, responses, **_):
        values = [0.0 if one.prompt_index in chosen else one.index % 2 for one in responses]
        total = torch.tensor(values, dtype=torch.float32)
        return Scores(total, {"a": total, "b": total * 2})

    monkeypatch.setattr(dynamic_sampling, "score_responses", score)
    return chosen, score


def sampling_of(rounds=2, ranks=SINGLE_PROCESS, worker=None):
    cfg = SimpleNamespace(
        dynamic_sampling=rounds, samples_per_prompt=SAMPLES, data=DataConfig(), seed=0
    )
    return DynamicSampling(cfg, worker or Worker(), None, ranks, TOTAL)


def step_of(prompts, score, positions=None):
    """Responses of a step and their scores."""
    positions = range(len(prompts)) if positions is None else positions
    responses = Worker().generate(prompts, positions, 1)
    return responses, score(None, None, responses)


def redrawn(sampling):
    total, groups = sampling.metrics["rollout/redrawn"]
    return float(total), groups


def order_of():
    """The prompts that replace others, in their order."""
    sampling = sampling_of()
    return [int(sampling.order.next_step()[0]) for _ in range(3 * COUNT)]


def test_groups_with_different_scores_stay(equal):
    _, score = equal
    sampling = sampling_of()
    responses, scores = step_of([3, 4], score)
    found, same = sampling(responses, scores, 1)
    assert found == responses
    assert same is scores
    assert sampling.worker.asked == []
    assert redrawn(sampling) == (0, 2)


def test_a_group_of_equal_scores_is_replaced_by_another_prompt(equal):
    """The second of three; its place, and so its numbers, stay."""
    chosen, score = equal
    chosen.add(4)
    sampling = sampling_of()
    new = order_of()[0]
    chosen.discard(new)
    responses, scores = step_of([3, 4, 5], score)
    chosen_before = [one.prompt_index for one in responses]
    scores = Scores(torch.tensor([0.0, 1, 7, 7, 0, 1]), {**scores.by_term})
    found, after = sampling(responses, scores, 2)
    assert sampling.worker.asked == [([new], [1], TOTAL + 1 + 2)]
    assert [one.prompt_index for one in found] == [3, 3, new, new, 5, 5]
    assert [one.index for one in found] == [*range(6)]
    assert after.total.tolist() == [0, 1, 0, 1, 0, 1]
    assert after.by_term["b"].tolist() == [0, 2, 0, 2, 0, 2]
    assert redrawn(sampling) == (1, 3)
    assert [one.prompt_index for one in responses] == chosen_before  # the caller's list is its own


def test_a_group_is_replaced_a_bounded_number_of_times_with_new_numbers_each_time(equal):
    chosen, score = equal
    chosen.update(range(COUNT))
    sampling = sampling_of(rounds=3)
    found, scores = sampling(*step_of([3, 4], score), 5)
    drawn = order_of()[:6]
    assert sampling.worker.asked == [
        (drawn[2 * k : 2 * k + 2], [0, 1], (k + 1) * (TOTAL + 1) + 5) for k in range(3)
    ]
    assert [one.prompt_index for one in found[::2]] == drawn[4:]
    assert scores.total.tolist() == [0] * 4
    assert redrawn(sampling) == (6, 2)


def test_ranks_draw_different_prompts_and_as_one_process_does(equal):
    chosen, score = equal
    chosen.update(range(COUNT))

    def act(ranks):
        own = ranks.shard(5)
        sampling = sampling_of(1, ranks)
        responses, scores = step_of([[0, 1, 2, 3, 4][k] for k in own], score, own)
        found, _ = sampling(responses, scores, 1)
        return [one.prompt_index for one in found[::2]], sampling.state_dict()

    ((alone, state),) = on_ranks(1, act)
    assert alone == order_of()[:5]
    for count in (2, 3, 7):  # with 7, some have no group
        parts = on_ranks(count, act)
        assert sum((found for found, _ in parts), []) == alone  # noqa: RUF017
        assert all(other == state for _, other in parts)


def test_a_rank_without_equal_scores_draws_nothing_and_waits_for_the_others(equal):
    chosen, score = equal
    chosen.add(1)

    def act(ranks):
        sampling = sampling_of(2, ranks)
        found, _ = sampling(*step_of([ranks.rank], score, [ranks.rank]), 1)
        return found[0].prompt_index, redrawn(sampling)

    first = order_of()[0]
    chosen.discard(first)
    assert on_ranks(2, act) == [(0, (0, 1)), (first if first != 1 else 1, (1, 1))]


def test_where_a_rank_fails_all_do(equal):
    chosen, score = equal
    chosen.update(range(COUNT))

    def act(ranks):
        sampling = sampling_of(2, ranks, Worker(fails=ranks.rank == 1))
        with pytest.raises((InferenceServerError, RankFailed)) as caught:
            sampling(*step_of([ranks.rank], score, [ranks.rank]), 1)
        return caught.type

    assert on_ranks(2, act) == [RankFailed, InferenceServerError]


def test_a_resume_draws_on(equal):
    chosen, score = equal
    chosen.update(range(COUNT))
    first, second = sampling_of(), sampling_of()
    first(*step_of([0, 1], score), 1)
    second.load_state_dict(first.state_dict())
    for sampling in (first, second):
        sampling(*step_of([2, 3], score), 2)
    assert first.worker.asked[2:] == second.worker.asked


def test_a_value_model_learns_from_equal_scores_too(files, capsys):
    assert cli.main(words_of("dynamic_sampling=1", "--dry-run")) == 2
    shown = capsys.readouterr().err
    assert "dynamic_sampling: got 1 with advantage=gae" in shown
    assert "Try dynamic_sampling=0" in shown


def test_a_run_replaces_groups_and_keeps_the_prompts_of_its_steps(ppo):
    words = ("advantage=grpo", "samples_per_prompt=2", "reward.function=judge.py:some", "lr=1e-9")
    (line,) = ppo(*words, "dynamic_sampling=1", "max_steps=1")
    assert line["rollout/redrawn"] == 0.5  # of the 4 groups, the second and the fourth
    assert line["objective/teaching"] > 0.5

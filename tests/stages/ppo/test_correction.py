"""Mismatch of a server and the policy, its correction and the age of weights, by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from rlhf_cli.rollout.response import Response
from rlhf_cli.rollout.server.config import RolloutConfig
from rlhf_cli.stages.ppo.advantages import RolloutTensors
from rlhf_cli.stages.ppo.correction import CORRECTION, correct
from rlhf_cli.stages.rollouts.statistics import staleness_metrics

OWN = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -0.7, 0.0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])
RATIOS = [[2.0, 0.5, 4.0], [1.5, 1.5]]  # policy over server
RESPONSES = [
    Response(
        index=k,
        prompt_index=k,
        prompt_ids=[1],
        token_ids=[5] * len(ratios),
        logprobs=[float(OWN[k, i]) - math.log(ratio) for i, ratio in enumerate(ratios)],
        weights_version=4 - k,
    )
    for k, ratios in enumerate(RATIOS)
]


def tensors(own=OWN, mask=MASK):
    zeros = torch.zeros_like(own)
    return RolloutTensors(own, zeros, zeros, mask, mask, torch.zeros(len(own)), 1)


def means(metrics):
    return {name: float(total) / count for name, (total, count) in metrics.items()}


@pytest.mark.parametrize(
    ("words", "weights", "cut"),
    [
        ({}, [[2, 0.5, 3], [1.5, 1.5, 1]], 1 / 5),
        ({"correction_mask": True}, [[2, 0.5, 0], [1.5, 1.5, 1]], 1 / 5),
        ({"correction": "sequence"}, [[3, 3, 3], [2.25, 2.25, 1]], 3 / 5),
        ({"correction": "sequence", "correction_cap": 5.0}, [[4] * 3, [2.25, 2.25, 1]], 0),
    ],
)
def test_weights_and_metrics_of_two_responses(words, weights, cut):
    cfg = RolloutConfig(server="http://127.0.0.1:1", **words)
    columns, metrics = correct(RESPONSES, tensors(), cfg)
    expected = torch.tensor(weights, dtype=torch.float32)
    assert_close(columns[CORRECTION], expected)
    found = means(metrics)
    logs = [math.log(ratio) for ratios in RATIOS for ratio in ratios]
    assert found["rollout/mismatch"] == pytest.approx(sum(map(abs, logs)) / 5)
    # k3 of samples from q: p/q - 1 - ln(p/q)
    kl = sum(math.exp(log) - 1 - log for log in logs) / 5
    assert found["rollout/mismatch_kl"] == pytest.approx(kl)
    assert found["correction/weight"] == pytest.approx(float(expected[MASK].mean()))
    assert found["correction/cut"] == pytest.approx(cut)


def test_without_correction_the_mismatch_is_measured_all_the_same():
    cfg = RolloutConfig(server="http://127.0.0.1:1", correction="none")
    columns, metrics = correct(RESPONSES, tensors(), cfg)
    assert columns == {}
    assert set(metrics) == {"rollout/mismatch", "rollout/mismatch_kl"}


def test_a_position_after_the_end_has_weight_1():
    """With `compat=trl` the tensors are wider than any response."""
    wide = torch.nn.functional.pad(OWN, (0, 1)), torch.nn.functional.pad(MASK, (0, 1))
    columns, _ = correct(RESPONSES, tensors(*wide), RolloutConfig(server="http://127.0.0.1:1"))
    assert columns[CORRECTION].shape == (2, 4)
    assert columns[CORRECTION][:, 3].tolist() == [1, 1]


def test_a_rank_may_have_no_response():
    empty = torch.zeros(0, 0)
    _, metrics = correct([], tensors(empty, empty.bool()), RolloutConfig(server="http://x:1"))
    assert {float(total) for total, _ in metrics.values()} == {0}
    assert {count for _, count in {**metrics, **staleness_metrics([], 5)}.values()} == {0}


def test_staleness_counts_the_steps_that_the_weights_have_not_seen():
    """Before step 5 the policy has seen 4; the responses are by its weights after 4 and 3."""
    assert means(staleness_metrics(RESPONSES, 5)) == {"rollout/staleness": 0.5}

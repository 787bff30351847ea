"""The check of a server's log-probs compares them with the policy's under the same distribution."""

from dataclasses import replace

import pytest
import torch

from rlhf_cli.distributed.ranks import SINGLE_PROCESS
from rlhf_cli.errors import ModelError
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.response import Response
from rlhf_cli.rollout.server.config import RolloutConfig
from rlhf_cli.stages.rollouts.logprob_check import LogprobCheck
from rlhf_cli.stages.rollouts.pipeline import Rollout

POLICY, TRUNCATED = -1.0, -0.2
"""Log-prob of each token in the policy, and in what `top_k` leaves of it."""


class Server:
    """Engine and worker: responses with the log-probs of its sampling."""

    def __init__(self, sampling):
        self.sampling, self.engine = sampling, self

    def with_sampling(self, sampling):
        return Server(sampling)

    def generate(self, indices, positions, step):
        value = TRUNCATED if self.engine.sampling.top_k else POLICY
        return [
            Response(k, k, [5], [6, 7], logprobs=[value] * 2, weights_version=step - 1)
            for k in range(len(indices))
        ]


def check_of(sampling, worker):
    def compute(responses, temperature):
        return torch.full((len(responses), 2), POLICY)

    return LogprobCheck(RolloutConfig(), sampling, worker, compute, SINGLE_PROCESS)


@pytest.mark.parametrize("top_k", [0, 4])
def test_truncated_sampling_is_checked_by_responses_of_the_whole_distribution(top_k, capsys):
    worker = Server(SamplingConfig(top_k=top_k))
    check = check_of(worker.sampling, worker)
    check(Rollout(1, [0, 1], worker.generate([0, 1], [0, 1], 1)))
    assert check.first == 0
    assert worker.engine.sampling.top_k == top_k


def test_other_log_probs_than_the_policys_end_the_run():
    worker = Server(SamplingConfig())
    check = check_of(worker.sampling, worker)
    responses = worker.generate([0], [0], 1)
    other = [replace(one, logprobs=[POLICY - 0.3] * 2) for one in responses]
    with pytest.raises(ModelError, match=r"rollout\.check_bound: step 1: .* by 0\.3 nats a token"):
        check(Rollout(1, [0], other))

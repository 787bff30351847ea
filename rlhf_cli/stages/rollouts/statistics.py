"""Statistics of a rollout over all ranks, and warnings where they are signs of trouble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.losses.kl import kl_estimate
from rlhf_cli.losses.reduction import Metrics, mean_metric
from rlhf_cli.rollout.response import Response
from rlhf_cli.stages.rollouts.reward_hacking import RewardHackingMonitor


class RolloutStatistics:
    """Measures each rollout, and compares it with the first ones.

    Args:
        ranks: share the responses of a rollout.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.monitor = ranks, RewardHackingMonitor()

    def measure(
        self, responses: Sequence[Response], scores: Tensor, entropy: float | None = None
    ) -> Metrics:
        """Lengths, ends, distinct responses and deviation of the scores; all ranks call it.

        Args:
            responses: of this rank, possibly none.
            scores: [B], of each.
            entropy: nats, summed over the tokens of this rank's responses; None where unknown.
        """
        own = [(len(one.token_ids), one.finished, one.fingerprint) for one in responses]
        gathered = [one for part in self.ranks.all_gather_json(own) for one in part]
        entropies = self.ranks.all_gather_json(entropy or 0.0)
        every_score = self.ranks.all_gather_concat(scores).double()
        distinct = len({fingerprint for *_, fingerprint in gathered}) / len(gathered)
        tokens = sum(length for length, *_ in gathered)
        deviation = float(every_score.std()) if len(every_score) > 1 else 1.0
        now = {
            "score": float(every_score.mean()),
            "deviation": deviation,
            "length": tokens / len(gathered),
            "ended": sum(finished for _, finished, _ in gathered) / len(gathered),
            "distinct": distinct if len(gathered) > 3 else 1.0,
        }
        if entropy is not None:
            now["entropy"] = sum(entropies) / tokens
        self.monitor.check(now)
        rows, once = float(len(responses)), int(self.ranks.is_main)
        return {
            "tokens/response_length": (torch.tensor(float(sum(n for n, *_ in own))), rows),
            "tokens/eos_fraction": (torch.tensor(float(sum(ended for _, ended, _ in own))), rows),
            "objective/score_std": (torch.tensor(deviation * once), once),
            "rollout/distinct": (torch.tensor(distinct * once), once),
        }

    def state_dict(self) -> dict[str, Any]:
        """State as JSON values."""
        return self.monitor.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.monitor.load_state_dict(state)


def staleness_metrics(responses: Sequence[Response], step: int) -> Metrics:
    """Steps by which the weights of responses are older than those that the step updates.

    Args:
        responses: of this rank.
        step: that trains on them, from 1.
    """
    ages = torch.tensor([float(step - 1 - one.weights_version) for one in responses])
    return {"rollout/staleness": mean_metric(ages)}


def time_metrics(ranks: Ranks, **seconds: float) -> Metrics:
    """Times of rank 0 by what they were spent on."""
    once = int(ranks.is_main)
    return {
        f"time/{name}": (torch.tensor(spent * once, dtype=torch.float64), once)
        for name, spent in seconds.items()
    }


def mismatch_metrics(logprobs: Tensor, sampler_logprobs: Tensor) -> Metrics:
    """Mean absolute difference and KL of the sampler from the policy, of tokens [N], nats.

    The KL is Schulman's k3 estimate, since the tokens were drawn from the sampler.
    """
    return {
        "rollout/mismatch": mean_metric((logprobs - sampler_logprobs).abs()),
        "rollout/mismatch_kl": mean_metric(kl_estimate(sampler_logprobs, logprobs, "k3")),
    }

"""Dynamic sampling: groups of responses with equal scores are replaced by those of other prompts.

Such a group has advantages of 0 and teaches nothing. As in DAPO (Yu et al. 2025, arXiv:2503.14476,
section 3.2), other prompts are drawn in its place; a bounded number of times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlhf_cli.data.sampler import EpochSampler
from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.losses.reduction import Metrics
from rlhf_cli.rewards.rewards import CombinedReward, Scores
from rlhf_cli.rollout.response import Response
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.rollouts.worker import RolloutWorker, score_responses


@dataclass
class _OneAtATime:
    """Steps of the order of replacements: one prompt each, without end."""

    batch_size: int = 1
    epochs: int = 1
    max_steps: int = 2**62


class DynamicSampling:
    """Replaces the groups of a rollout whose scores are all equal.

    The prompts that take their place come from an order of their own, so that the steps' prompts
    are those of a run without.

    Args:
        cfg: `dynamic_sampling` is the number of times that a group is replaced at most.
        worker: generates responses.
        rewards: score them.
        ranks: share the prompts of a step.
        total_steps: of the run, so that each time has other random numbers.
    """

    def __init__(
        self,
        cfg: PPOConfig,
        worker: RolloutWorker,
        rewards: CombinedReward,
        ranks: Ranks,
        total_steps: int,
    ) -> None:
        self.rounds, self.samples = cfg.dynamic_sampling, cfg.samples_per_prompt
        self.worker, self.rewards, self.ranks = worker, rewards, ranks
        self.total_steps = total_steps
        tokens = sum(map(len, worker.prompt_ids))
        count = len(worker.prompts)
        self.order = EpochSampler(count, tokens, cfg.data, _OneAtATime(), cfg.seed + 1, "prompts")
        self.metrics: Metrics = {}

    def __call__(
        self, responses: Sequence[Response], scores: Scores, step: int
    ) -> tuple[list[Response], Scores]:
        """Replace groups with equal scores, at most `dynamic_sampling` times; collective.

        Args:
            responses: of this rank; those to one prompt are adjacent.
            scores: theirs.
            step: number of the step, from 1.
        """
        kept, drawn = list(responses), 0
        groups = len(kept) // self.samples
        for number in range(1, self.rounds + 1):
            constant = self._constant_groups(scores)
            if not self.ranks.any(bool(constant)):
                break
            places = [kept[group * self.samples].index // self.samples for group in constant]
            numbering = number * (self.total_steps + 1) + step
            fresh = self._generate(self._draw(len(constant)), places, numbering)
            index = self._responses_of(constant)
            fresh_scores = score_responses(self.rewards, self.worker.prompts, fresh)
            scores = _replaced(scores, fresh_scores, index)
            for position, response in zip(index, fresh, strict=True):
                kept[position] = response
            drawn += len(constant)
        self.metrics = {"rollout/redrawn": (torch.tensor(float(drawn)), float(groups))}
        return kept, scores

    def _generate(
        self, prompts: Sequence[int], places: Sequence[int], numbering: int
    ) -> list[Response]:
        return self.ranks.call_together(lambda: self.worker.generate(prompts, places, numbering))

    def _constant_groups(self, scores: Scores) -> list[int]:
        groups = scores.total.reshape(-1, self.samples)
        found: list[int] = (groups == groups[:, :1]).all(1).nonzero().flatten().tolist()
        return found

    def _responses_of(self, groups: Sequence[int]) -> list[int]:
        return [group * self.samples + k for group in groups for k in range(self.samples)]

    def _draw(self, count: int) -> list[int]:
        """Draw this rank's prompts; all ranks draw those of all, so that none is drawn twice."""
        counts = self.ranks.all_gather_json(count)
        drawn = []
        for _ in range(sum(counts)):
            chosen = self.order.next_step()
            assert chosen is not None  # there are more than any run draws
            drawn.append(int(chosen[0]))
        first = sum(counts[: self.ranks.rank])
        return drawn[first : first + count]

    def state_dict(self) -> dict[str, Any]:
        """State as JSON values."""
        return self.order.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.order.load_state_dict(state)


def _replaced(scores: Scores, fresh: Scores, index: Sequence[int]) -> Scores:
    """The scores with some replaced."""
    place = torch.tensor(index, dtype=torch.long)
    by_term = {
        name: values.index_copy(0, place, fresh.by_term[name])
        for name, values in scores.by_term.items()
    }
    return Scores(scores.total.index_copy(0, place, fresh.total), by_term)

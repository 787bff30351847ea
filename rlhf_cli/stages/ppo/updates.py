"""Updates of PPO: the minibatches of a rollout, epoch after epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.loader import ExampleLoader
from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.errors import NonFinite
from rlhf_cli.losses.advantages import overlong_penalty
from rlhf_cli.losses.entropy import EntropyController
from rlhf_cli.losses.kl import KLController
from rlhf_cli.losses.reduction import Metrics
from rlhf_cli.rollout.response import Response
from rlhf_cli.stages.ppo.columns import mark_as_ptx
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.ppo.experience import ExperienceMaker, RolloutBatch
from rlhf_cli.stages.ppo.loss import PPOLoss
from rlhf_cli.stages.rollouts.statistics import RolloutStatistics

EARLY_STOP_FACTOR = 1.5
"""Updates stop above this multiple of `early_stop_kl`, as in OpenAI's PPO."""


class PPOUpdater:
    """Turns scored responses into updates, and keeps the KL controller's state.

    Args:
        cfg: epochs, minibatches, penalties and limits.
        experience_maker: computes the experience of responses.
        loss: of the updates; measures the approximate KL of each.
        ptx: steps of `ptx_data`, one of which joins each update, or None.
        ranks: share the responses of a rollout; all call the methods together.

    Attributes:
        metrics: sums and counts over this rank's responses of the last rollout.
    """

    def __init__(
        self,
        cfg: PPOConfig,
        experience_maker: ExperienceMaker,
        loss: PPOLoss,
        ptx: ExampleLoader | None,
        ranks: Ranks,
    ) -> None:
        self.cfg, self.experience_maker, self.loss, self.ptx = cfg, experience_maker, loss, ptx
        self.ranks = ranks
        target = cfg.kl_target if cfg.kl_controller == "adaptive" else 0.0
        self.kl = KLController(cfg.kl_coef, target, cfg.kl_horizon)
        self.entropy = EntropyController(cfg.entropy_coef, cfg.entropy_target, cfg.entropy_step)
        self.step = 0
        self.statistics = RolloutStatistics(ranks)
        self.metrics: Metrics = {}

    def start_rollout(
        self,
        responses: Sequence[Response],
        scores: Tensor,
        step: int,
        by_term: Mapping[str, Tensor] | None = None,
    ) -> RolloutBatch:
        """Make the training batch of a rollout.

        Args:
            responses: of this rank, possibly none.
            scores: [B] fp32, of each, before penalties.
            step: number of the rollout, from 1.
            by_term: [B] fp32 of each reward term; `normalize_rewards=each` needs them.

        Raises:
            NonFinite: the KL from the reference is above `kl_limit`.
        """
        penalized, terms = scores + self._penalties(responses), None
        if self.cfg.normalize_rewards == "each":
            assert by_term is not None
            terms = torch.stack([*by_term.values()], -1)
        batch = self.experience_maker.make(responses, penalized, self.kl.value, terms)
        self.step = step
        self._collect_metrics(responses, scores, batch)
        entropy_coef = self._next_entropy_coef(responses)
        self._require_kl_limit(batch.kl, step)
        self.loss.start_rollout(
            self.kl.value, entropy_coef, value_warmup=step <= self.cfg.value_warmup_steps
        )
        return batch

    def _penalties(self, responses: Sequence[Response]) -> Tensor:
        """[B] fp32, at most 0: for a missing end, and for a length near the limit."""
        cfg = self.cfg
        unfinished = torch.tensor([not one.finished for one in responses], dtype=torch.float32)
        found = -cfg.missing_eos_penalty * unfinished
        if cfg.overlong_buffer:
            lengths = torch.tensor([len(one.token_ids) for one in responses], dtype=torch.float32)
            most = cfg.sampling.max_new_tokens
            overlong = overlong_penalty(lengths, most, cfg.overlong_buffer)
            found = found + cfg.overlong_penalty * overlong
        return found

    def _next_entropy_coef(self, responses: Sequence[Response]) -> float:
        """Coefficient of the entropy bonus in this rollout; the same on all ranks."""
        if not self.cfg.has_entropy_bonus:
            return 0.0
        total, rows = self.metrics["objective/entropy"]
        own = {"nats": float(total), "tokens": sum(len(one.token_ids) for one in responses)}
        every = self.ranks.sum_by_name(own)
        found = self.entropy.observe(every["nats"] / every["tokens"])
        coefs = torch.tensor(found, dtype=torch.float64) * rows
        self.metrics["objective/entropy_coef"] = (coefs, rows)
        return found

    def minibatches(self, batch: RolloutBatch) -> Iterator[list[TokenBatch]]:
        """The minibatches of all epochs, after which the KL controller is updated."""
        yield from self._epochs(batch)
        kl = self.ranks.all_gather_concat(batch.kl)
        self.kl.update(float(kl.double().mean()), len(kl))

    def _epochs(self, batch: RolloutBatch) -> Iterator[list[TokenBatch]]:
        for epoch in range(self.cfg.ppo_epochs):
            for minibatch in self._divide(batch, epoch):
                self.loss.approx_kl = (0.0, 0)
                yield [*minibatch, *self._next_ptx()]
                self.loss.first_update = False
                if self._kl_exceeded():
                    self.metrics["policy/early_stopped"] = (torch.tensor(1.0), 1.0)
                    return

    def _divide(self, batch: RolloutBatch, epoch: int) -> list[list[TokenBatch]]:
        """Minibatches of an epoch, counted from 0.

        The first has those in which the old log-probs were computed, so that the first ratio is
        exactly 1; the ratios of later epochs have moved from 1 anyway.
        """
        if not self.cfg.minibatch_shuffle or not epoch:
            return batch.minibatches
        every = int(self.ranks.sum_by_name({"responses": float(len(batch.kl))})["responses"])
        order = np.random.default_rng((self.cfg.seed, self.step, epoch)).permutation(every)
        return batch.divide_again(order.tolist())

    def _next_ptx(self) -> list[TokenBatch]:
        if self.ptx is None or self.loss.value_warmup:
            return []
        updates = self.ptx.next_step()
        assert updates is not None  # there are more steps than in any run
        return [mark_as_ptx(rows) for rows in updates[0]]

    def _kl_exceeded(self) -> bool:
        """Whether the last update's KL is over the `early_stop_kl` limit; the same on all ranks."""
        limit = self.cfg.early_stop_kl
        if not limit:
            return False
        total, count = self.loss.approx_kl
        kl = self.ranks.sum_by_name({"sum": float(total), "count": count})
        return kl["sum"] > EARLY_STOP_FACTOR * limit * kl["count"]

    def _require_kl_limit(self, kl: Tensor, step: int) -> None:
        mean = float(self.ranks.all_gather_concat(kl).double().mean())
        if not mean <= self.cfg.kl_limit:  # NaN too
            raise NonFinite(
                f"step {step}: the responses have a KL of {mean:.1f} nats from the reference, more "
                f"than kl_limit={self.cfg.kl_limit:g}; stopped before the update. "
                "Lower lr, raise kl_coef, or raise kl_limit if this is wanted"
            )

    def _collect_metrics(
        self, responses: Sequence[Response], scores: Tensor, batch: RolloutBatch
    ) -> None:
        rows, entropy = float(len(responses)), float(batch.metrics["objective/entropy"][0])
        self.metrics = {
            **batch.metrics,
            **self.statistics.measure(responses, scores, entropy),
            "objective/kl_coef": (torch.tensor(self.kl.value * rows, dtype=torch.float64), rows),
        }
        if self.cfg.samples_per_prompt > 1:
            self.metrics["objective/constant_groups"] = self._count_constant_groups(scores)
        if self.cfg.early_stop_kl:
            self.metrics["policy/early_stopped"] = (torch.tensor(0.0), 1.0)

    def _count_constant_groups(self, scores: Tensor) -> tuple[Tensor, float]:
        """Number of prompts whose responses all have the same score, and of prompts."""
        groups = scores.reshape(-1, self.cfg.samples_per_prompt)
        return (groups == groups[:, :1]).all(1).float().sum(), float(len(groups))

    def state_dict(self) -> dict[str, Any]:
        """State as JSON values."""
        text = None if self.ptx is None else self.ptx.state_dict()
        return {
            "kl_coef": self.kl.value,
            "entropy_coef": self.entropy.value,
            "signs": self.statistics.state_dict(),
            "text": text,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.kl.value = state["kl_coef"]
        self.entropy.value = state.get("entropy_coef", self.entropy.value)
        self.statistics.load_state_dict(state["signs"])
        if self.ptx is not None:
            self.ptx.load_state_dict(state["text"])

"""Steps of PPO: rollouts of the policy that is trained, and the updates they give."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.context import RunContext
from rlhf_cli.data.batches import Rows
from rlhf_cli.data.loader import ExampleSource
from rlhf_cli.data.order import Order
from rlhf_cli.errors import NonFinite
from rlhf_cli.losses.kl import KLController
from rlhf_cli.rewards.rewards import Scores
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.ppo.learning import Lesson, Teacher
from rlhf_cli.stages.ppo.loss import Metrics, PPOLoss
from rlhf_cli.stages.ppo.rollout import Author
from rlhf_cli.stages.ppo.rows import Written, as_text
from rlhf_cli.stages.ppo.samples import ROWS, SampleFile
from rlhf_cli.stages.ppo.signs import Signs

TOO_FAR = 1.5
"""Times `early_stop_kl`, as OpenAI's PPO has it."""


class RolloutSource:
    """Rolls out, scores, shapes, and yields the updates; a `StepSource`.

    Args:
        cfg: the whole configuration.
        author: writes and scores responses with the weights that the policy has now.
        teacher: makes updates of them.
        loss: of the updates; tells how far one went.
        text: `ptx_data`, a step of which goes with each update, or none.
        ctx: ranks share the prompts of a step.
    """

    def __init__(
        self,
        cfg: PPOConfig,
        author: Author,
        teacher: Teacher,
        loss: PPOLoss,
        text: ExampleSource | None,
        ctx: RunContext,
    ) -> None:
        self.cfg, self.author, self.teacher, self.loss = cfg, author, teacher, loss
        self.text, self.ctx = text, ctx
        tokens = sum(map(len, author.tokens))
        self.order = Order(len(author.prompts), tokens, cfg.data, cfg.train, cfg.seed, "prompts")
        target = cfg.kl_target if cfg.kl_controller == "adaptive" else 0.0
        self.kl = KLController(cfg.kl_coef, target, cfg.kl_horizon)
        self.signs = Signs()
        self.samples = SampleFile(ctx.out, written=ctx.ranks.main)
        self.metrics: Metrics = {}

    @property
    def total_steps(self) -> int:
        """Rollouts of the whole run, from its first."""
        return self.order.total_steps

    def next_step(self) -> Iterator[list[Rows]] | None:
        """The updates of the next rollout; or None: the run is over."""
        chosen = self.order.next_step()
        return None if chosen is None else self._updates(chosen.tolist())

    def take_metrics(self) -> Metrics:
        """What was measured of the step just taken."""
        found, self.metrics = self.metrics, {}
        return found

    def _updates(self, chosen: Sequence[int]) -> Iterator[list[Rows]]:
        """Roll out, score and shape; then the minibatches, epoch after epoch."""
        ranks, step = self.ctx.ranks, self.order.step
        places = range(ranks.rank, len(chosen), ranks.size)
        began = time.monotonic()
        responses = self.author.write([chosen[place] for place in places], places, step)
        written = time.monotonic()
        scores = self.author.score(responses)
        scored = time.monotonic()
        score = self._penalized(responses, scores.total)
        lesson = self.teacher.teach(responses, score, self.kl.value)
        self._note(responses, scores, score, lesson)
        shaped = time.monotonic()
        self.loss.begin(self.kl.value, warming=step <= self.cfg.value_warmup_steps)
        self._require_near(lesson.kl)
        yield from self._passes(lesson)
        self.kl.update(self._mean(lesson.kl), len(chosen) * self.cfg.samples_per_prompt)
        self._note_times(
            rollout=written - began,
            score=scored - written + shaped - scored,
            update=time.monotonic() - shaped,
        )

    def _passes(self, lesson: Lesson) -> Iterator[list[Rows]]:
        for _ in range(self.cfg.ppo_epochs):
            for minibatch in lesson.minibatches:
                self.loss.moved = [0.0, 0.0]
                yield [*minibatch, *self._next_text()]
                if self._went_far():
                    return

    def _next_text(self) -> list[Rows]:
        if self.text is None:
            return []
        updates = self.text.next_step()
        assert updates is not None  # it has as many steps as the run has updates
        return [as_text(rows) for rows in updates[0]]

    def _penalized(self, responses: Sequence[Written], score: Tensor) -> Tensor:
        open_end = torch.tensor([not one.finished for one in responses], dtype=torch.float32)
        return score - self.cfg.missing_eos_penalty * open_end

    def _went_far(self) -> bool:
        """Whether the update that was just made ends the rollout's; the same on all ranks."""
        most = self.cfg.early_stop_kl
        if not most:
            return False
        moved = self.ctx.ranks.add({"sum": self.loss.moved[0], "count": self.loss.moved[1]})
        return moved["sum"] > TOO_FAR * most * moved["count"]

    def _require_near(self, kl: Tensor) -> None:
        """Stop where the policy has left the reference far behind.

        Raises:
            NonFinite: with the KL and what to change.
        """
        mean = self._mean(kl)
        if not mean <= self.cfg.kl_limit:  # NaN too
            raise NonFinite(
                f"step {self.order.step}: the responses have a KL of {mean:.1f} nats from the "
                f"reference, more than kl_limit={self.cfg.kl_limit:g}; stopped before the update. "
                "Lower lr, raise kl_coef, or raise kl_limit if this is wanted"
            )

    def _mean(self, values: Tensor) -> float:
        """Of the numbers of all ranks' responses."""
        every = torch.cat(self.ctx.ranks.gather(values))
        return float(every.double().mean())

    def _note(
        self, responses: Sequence[Written], scores: Scores, score: Tensor, lesson: Lesson
    ) -> None:
        rows = float(len(responses))
        lengths = torch.tensor([float(len(one.tokens)) for one in responses])
        ended = torch.tensor([float(one.finished) for one in responses])
        coefficient = torch.tensor(self.kl.value * rows, dtype=torch.float64)
        self.metrics |= lesson.metrics
        self.metrics |= {f"score/{n}": (v.sum(), rows) for n, v in scores.by_term.items()}
        self.metrics |= {
            "tokens/response_length": (lengths.sum(), rows),
            "tokens/eos_fraction": (ended.sum(), rows),
            "objective/kl_coef": (coefficient, rows),
        }
        self._look(responses, scores, lengths, ended)
        step, every = self.order.step, self.cfg.sample_steps
        if every and (step % every == 0 or step in (1, self.total_steps)):
            self.samples.add(step, self.author.show(responses[:ROWS], score, lesson.kl))

    def _look(
        self, responses: Sequence[Written], scores: Scores, lengths: Tensor, ended: Tensor
    ) -> None:
        """Compare with earlier rollouts; on the responses of all ranks."""
        entropy = self.metrics["objective/entropy"][0]
        gather = self.ctx.ranks.gather
        texts = [text for part in gather([tuple(one.tokens) for one in responses]) for text in part]
        score = torch.cat(gather(scores.total)).double()
        length = torch.cat(gather(lengths))
        self.signs.look(
            {
                "score": float(score.mean()),
                "deviation": float(score.std()) if len(score) > 1 else 1.0,
                "length": float(length.mean()),
                "ended": float(torch.cat(gather(ended)).mean()),
                "distinct": len({*texts}) / len(texts) if len(texts) > 3 else 1.0,
                "entropy": sum(gather(float(entropy))) / float(length.sum()),
            }
        )

    def _note_times(self, **seconds: float) -> None:
        once = int(self.ctx.ranks.main)
        for name, spent in seconds.items():
            self.metrics[f"time/{name}"] = (torch.tensor(spent * once, dtype=torch.float64), once)

    def state_dict(self) -> dict[str, Any]:
        """JSON values: the position, and all that goes on from step to step."""
        return {
            "order": self.order.state_dict(),
            "kl_coef": self.kl.value,
            "rewards": self.author.rewards.state_dict(),
            "signs": self.signs.state_dict(),
            "text": None if self.text is None else self.text.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            CheckpointError: the data or the batch size are not those of the checkpoint.
        """
        self.order.load_state_dict(state["order"])
        self.kl.value = state["kl_coef"]
        self.author.rewards.load_state_dict(state["rewards"])
        self.signs.load_state_dict(state["signs"])
        if self.text is not None:
            self.text.load_state_dict(state["text"])
        self.samples.cut(self.order.step)

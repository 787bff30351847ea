"""The updates that scored responses give, and what goes on from one rollout to the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.loader import ExampleLoader
from rlhf_cli.distributed import Ranks
from rlhf_cli.errors import NonFinite
from rlhf_cli.losses.kl import KLController
from rlhf_cli.losses.reduce import Metrics
from rlhf_cli.stages.ppo.config import PPOConfig
from rlhf_cli.stages.ppo.learning import Lesson, Teacher
from rlhf_cli.stages.ppo.loss import PPOLoss
from rlhf_cli.stages.ppo.rows import Written, as_text
from rlhf_cli.stages.ppo.signs import Signs

TOO_FAR = 1.5
"""Times `early_stop_kl`, as OpenAI's PPO has it."""


class Updates:
    """Shapes rewards and advantages of a rollout, and gives its minibatches epoch after epoch.

    Args:
        cfg: epochs, minibatches, penalties and limits.
        teacher: measures the responses.
        loss: of the updates; tells how far one went.
        text: `ptx_data`, a step of which goes with each update, or none.
        ranks: share the responses of a rollout; all call the methods together.

    Attributes:
        metrics: sums and counts over this rank's responses of the last rollout.
    """

    def __init__(
        self,
        cfg: PPOConfig,
        teacher: Teacher,
        loss: PPOLoss,
        text: ExampleLoader | None,
        ranks: Ranks,
    ) -> None:
        self.cfg, self.teacher, self.loss, self.text = cfg, teacher, loss, text
        self.ranks = ranks
        target = cfg.kl_target if cfg.kl_controller == "adaptive" else 0.0
        self.kl = KLController(cfg.kl_coef, target, cfg.kl_horizon)
        self.signs = Signs()
        self.metrics: Metrics = {}

    def begin(self, responses: Sequence[Written], score: Tensor, step: int) -> Lesson:
        """What a rollout teaches.

        Args:
            responses: of this rank, perhaps none.
            score: [B] fp32, of each, before penalties.
            step: number of the rollout, from 1.

        Raises:
            NonFinite: the policy has left the reference far behind.
        """
        open_end = torch.tensor([not one.finished for one in responses], dtype=torch.float32)
        shown = score - self.cfg.missing_eos_penalty * open_end
        lesson = self.teacher.teach(responses, shown, self.kl.value)
        self._note(responses, lesson)
        self._look(responses, score)
        self._require_near(lesson.kl, step)
        self.loss.begin(self.kl.value, warming=step <= self.cfg.value_warmup_steps)
        return lesson

    def passes(self, lesson: Lesson) -> Iterator[list[TokenBatch]]:
        """The updates one after the other; the KL coefficient follows them."""
        yield from self._epochs(lesson)
        every = self.ranks.concatenate(lesson.kl)
        self.kl.update(float(every.double().mean()), len(every))

    def _epochs(self, lesson: Lesson) -> Iterator[list[TokenBatch]]:
        for _ in range(self.cfg.ppo_epochs):
            for minibatch in lesson.minibatches:
                self.loss.moved = (0.0, 0)
                yield [*minibatch, *self._next_text()]
                self.loss.fresh = False
                if self._went_far():
                    return

    def _next_text(self) -> list[TokenBatch]:
        if self.text is None or self.loss.warming:
            return []
        updates = self.text.next_step()
        assert updates is not None  # it goes on for longer than any run
        return [as_text(rows) for rows in updates[0]]

    def _went_far(self) -> bool:
        """Whether the update that was just made ends the rollout's; the same on all ranks."""
        most = self.cfg.early_stop_kl
        if not most:
            return False
        total, count = self.loss.moved
        moved = self.ranks.add({"sum": float(total), "count": count})
        return moved["sum"] > TOO_FAR * most * moved["count"]

    def _require_near(self, kl: Tensor, step: int) -> None:
        mean = float(self.ranks.concatenate(kl).double().mean())
        if not mean <= self.cfg.kl_limit:  # NaN too
            raise NonFinite(
                f"step {step}: the responses have a KL of {mean:.1f} nats from the reference, more "
                f"than kl_limit={self.cfg.kl_limit:g}; stopped before the update. "
                "Lower lr, raise kl_coef, or raise kl_limit if this is wanted"
            )

    def _note(self, responses: Sequence[Written], lesson: Lesson) -> None:
        rows = float(len(responses))
        lengths = [len(one.tokens) for one in responses]
        ended = [one.finished for one in responses]
        self.metrics = {
            **lesson.metrics,
            "tokens/response_length": (torch.tensor(float(sum(lengths))), rows),
            "tokens/eos_fraction": (torch.tensor(float(sum(ended))), rows),
            "objective/kl_coef": (torch.tensor(self.kl.value * rows, dtype=torch.float64), rows),
        }

    def _look(self, responses: Sequence[Written], score: Tensor) -> None:
        """Compare with earlier rollouts, over the responses of all ranks."""
        gather = self.ranks.gather
        entropy = sum(gather(float(self.metrics["objective/entropy"][0])))
        own = [(len(one.tokens), one.finished, one.fingerprint) for one in responses]
        every = [found for part in gather(own) for found in part]
        points = self.ranks.concatenate(score).double()
        distinct = len({fingerprint for *_, fingerprint in every}) / len(every)
        tokens = sum(length for length, *_ in every)
        self.signs.look(
            {
                "score": float(points.mean()),
                "deviation": float(points.std()) if len(points) > 1 else 1.0,
                "length": tokens / len(every),
                "ended": sum(ended for _, ended, _ in every) / len(every),
                "distinct": distinct if len(every) > 3 else 1.0,
                "entropy": entropy / tokens,
            }
        )

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        text = None if self.text is None else self.text.state_dict()
        return {"kl_coef": self.kl.value, "signs": self.signs.state_dict(), "text": text}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.kl.value = state["kl_coef"]
        self.signs.load_state_dict(state["signs"])
        if self.text is not None:
            self.text.load_state_dict(state["text"])

"""Interfaces between the training loop and a stage: the steps, and the stage's own state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from torch import Tensor

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.distributed.shards import ShardLayout


class StageState:
    """State of a stage from step to step beside the trained weights; empty by default."""

    def after_step(self, step: int) -> None:
        """Called after each step with its number, from 1."""

    def state_dict(self) -> dict[str, Any]:
        """State as JSON values, for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""

    def tensors(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint; filled in place when a run is continued."""
        return {}

    def layouts(self) -> dict[str, ShardLayout]:
        """Name -> rows that this rank holds, of each of `tensors` that is sharded."""
        return {}


class SampleWriter(Protocol):
    """Writes responses of the policy after an evaluation; must not influence training."""

    def write(self, step: int) -> None:
        """Generate and write the responses after a step; every rank calls it."""

    def cut(self, step: int) -> None:
        """Remove what was written after a step."""


class StepSource(Protocol):
    """Source of optimizer steps: of SFT the data loader, of PPO the rollouts."""

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole run."""

    def next_step(self) -> Iterable[list[TokenBatch]] | None:
        """The updates of the next step in order, or None at the end of the run.

        An update is one optimizer step: a list of this rank's micro-batches, which may be empty.
        All ranks have equally many. A step has one update; in PPO, one per epoch and minibatch.
        """

    def take_metrics(self) -> Mapping[str, tuple[Tensor, Tensor | float]]:
        """Metrics that the source measured in the last step: name -> (sum, count)."""

    def state_dict(self) -> dict[str, Any]:
        """Position as JSON values, for a checkpoint."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position that `state_dict` returned."""

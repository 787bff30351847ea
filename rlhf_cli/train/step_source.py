"""What the loop asks of a stage: steps of updates, and what it keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from torch import Tensor

from rlhf_cli.data.batches import TokenBatch


class StageState:
    """What a stage keeps from step to step, beside the weights it trains; here nothing."""

    def after_step(self, step: int) -> None:
        """Told after each optimizer step how many there were."""

    def state_dict(self) -> dict[str, Any]:
        """JSON values for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors for a checkpoint, filled in place when a run goes on."""
        return {}


class StepSource(Protocol):
    """Yields optimizer steps. SFT's is the loader; PPO's refills itself by a rollout."""

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, from its first."""

    def next_step(self) -> Iterable[list[TokenBatch]] | None:
        """The updates of the next step, one after the other; or None: the run is over.

        An update is one move of the optimizer: this rank's micro-batches of it, perhaps none. All
        ranks have as many updates. A step has one, in PPO one for each epoch and minibatch.
        """

    def take_metrics(self) -> Mapping[str, tuple[Tensor, Tensor | float]]:
        """Sums and counts that the source itself measured in the step just taken."""

    def state_dict(self) -> dict[str, Any]:
        """JSON values from which `load_state_dict` continues with the next step."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""

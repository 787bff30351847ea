"""What the loop asks of a stage: steps, each a list of micro-batches, and what it keeps."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from rlhf_cli.data.batches import Rows


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

    def next_step(self) -> list[Rows] | None:
        """This rank's micro-batches of the next step, perhaps none; or None: the run is over."""

    def state_dict(self) -> dict[str, Any]:
        """JSON values from which `load_state_dict` continues with the next step."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""

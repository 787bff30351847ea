"""What the loop asks of a stage: steps, each a list of micro-batches, and what it keeps."""

from __future__ import annotations

from typing import Any, Protocol

from rlhf_cli.data.batches import Rows


class Stateful(Protocol):
    """What a run goes on with after an interruption, as JSON values."""

    def state_dict(self) -> dict[str, Any]:
        """JSON values from which `load_state_dict` continues with the next step."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""


class StepSource(Stateful, Protocol):
    """Yields optimizer steps. SFT's is the loader; PPO's refills itself by a rollout."""

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, from its first."""

    def next_step(self) -> list[Rows] | None:
        """This rank's micro-batches of the next step, perhaps none; or None: the run is over."""

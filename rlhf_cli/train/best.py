"""The best evaluation so far: what early stopping and `train.result=best` go by."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Best:
    """The evaluation with the lowest held-out loss.

    Attributes:
        step: after which it was made; 0 is before the first step.
        values: all that was measured then; empty before any evaluation.
        waited: evaluations since then.
    """

    step: int = 0
    values: dict[str, float] = field(default_factory=dict)
    waited: int = 0

    def note(self, step: int, values: dict[str, float]) -> bool:
        """Take in an evaluation; whether it is the best so far. NaN is never better."""
        if not self.values or values["loss"] < self.values["loss"]:
            self.step, self.values, self.waited = step, values, 0
            return True
        self.waited += 1
        return False

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

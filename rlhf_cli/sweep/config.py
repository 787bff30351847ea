from dataclasses import dataclass
from typing import Annotated, Literal

from rlhf_cli.config.schema import RuntimeOnly

Mode = Literal["min", "max"]

_IN_TRAINING = {
    "score": "objective/scores",
    "kl": "objective/kl",
    "response_length": "tokens/response_length",
    "eos_fraction": "tokens/eos_fraction",
}
"""Held-out metrics whose training metric has another name; all others have the same."""


def training_metric(metric: str) -> str:
    """The metric of training that means the same as a held-out one (`eval/NAME`)."""
    name = metric.removeprefix("eval/")
    return metric if name == metric else _IN_TRAINING.get(name, name)


@dataclass(frozen=True)
class Objective:
    """What the runs of a sweep are compared by.

    Attributes:
        metric: of a finished run, as `eval/loss`; without `eval/` of its last logged step.
        mode: whether the least or the greatest value is the best.
    """

    metric: str
    mode: Mode

    def cost(self, value: float) -> float:
        """The value as a number to be minimized."""
        return value if self.mode == "min" else -value


@dataclass(kw_only=True)
class SweepConfig:
    """What the runs of a sweep (`-m`) are compared by; a single run does not read it."""

    metric: Annotated[str, RuntimeOnly()] = "auto"
    """Metric of a finished run, as `eval/loss`; without `eval/` that of its last logged step. A run
    without held-out rows is compared by the metric of training that means the same.
    `auto` is the held-out accuracy of pairs for dpo, the held-out score for ppo (its KL stands
    beside it in the table), and else the held-out loss."""

    mode: Annotated[Literal["auto", "min", "max"], RuntimeOnly()] = "auto"
    """Whether the least or the greatest value is the best; given with `sweep.metric`."""

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        if self.metric != "auto" and self.mode == "auto":
            return [
                f"sweep.mode: none given with sweep.metric={self.metric}; need min or max. "
                "Try sweep.mode=min"
            ]
        if self.metric == "auto" and self.mode != "auto":
            return [
                f"sweep.mode: got {self.mode} with sweep.metric=auto, which has its own. "
                "Try sweep.mode=auto"
            ]
        return []

    def objective(self, usual: Objective) -> Objective:
        """What is asked for, else what is usual for the stage."""
        if self.metric == "auto" or self.mode == "auto":
            return usual
        return Objective(self.metric, self.mode)

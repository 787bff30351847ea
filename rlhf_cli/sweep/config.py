from dataclasses import dataclass
from typing import Annotated, Literal

from rlhf_cli.config.schema import RuntimeOnly

Mode = Literal["min", "max"]

_TRAINING_NAMES = {
    "score": "objective/scores",
    "kl": "objective/kl",
    "response_length": "tokens/response_length",
    "eos_fraction": "tokens/eos_fraction",
}
"""Held-out metric -> training metric, where the names differ."""


def training_metric(metric: str) -> str:
    """Name of the training metric that corresponds to a held-out one (`eval/NAME`)."""
    name = metric.removeprefix("eval/")
    return metric if name == metric else _TRAINING_NAMES.get(name, name)


@dataclass(frozen=True)
class Objective:
    """Metric by which the runs of a sweep are compared.

    Attributes:
        metric: of a finished run, as `eval/loss`; without `eval/` of its last logged step.
        mode: whether lower (`min`) or higher (`max`) is better.
    """

    metric: str
    mode: Mode

    def cost(self, value: float) -> float:
        """Convert a value to one that is minimized."""
        return value if self.mode == "min" else -value


@dataclass(kw_only=True)
class SweepConfig:
    """Metric by which the runs of a sweep (`-m`) are compared; single runs ignore it."""

    metric: Annotated[str, RuntimeOnly()] = "auto"
    """Metric of a finished run, as `eval/loss`; without `eval/` that of its last logged step. A run
    without held-out rows is compared by the corresponding training metric. `auto` is the held-out
    accuracy of pairs for dpo, the held-out score for ppo (the table shows its KL too), and the
    held-out loss for other stages."""

    mode: Annotated[Literal["auto", "min", "max"], RuntimeOnly()] = "auto"
    """Whether lower (`min`) or higher (`max`) values are better; needed with `sweep.metric`."""

    def problems(self) -> list[str]:
        """Contradictions between options, one line each."""
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

    def objective(self, default: Objective) -> Objective:
        """The configured objective, else the default of the stage."""
        if self.metric == "auto" or self.mode == "auto":
            return default
        return Objective(self.metric, self.mode)

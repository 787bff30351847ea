"""What an entry of the glossary says about a metric, and the groups of metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Group = Literal["result", "kl", "length", "value", "update", "speed", "other"]

GROUPS: Mapping[Group, str] = {
    "result": "Loss and reward",
    "kl": "KL and entropy",
    "length": "Response length and end",
    "value": "Value model",
    "update": "Optimizer updates",
    "speed": "Throughput and memory",
    "other": "Other metrics",
}
"""Group of metrics -> its title, in the order in which a report shows them."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What is known of one metric.

    Attributes:
        name: in `metrics.jsonl`.
        label: title of its curve.
        meaning: one sentence, with its source where it has one.
        unit: of a value; empty for a number without one, `share` for 0 to 1.
        group: in which a report shows it.
        merged: how values of several updates, micro-batches and ranks become one line.
        better: the direction of an improvement, where there is one.
        healthy: lower and upper end of the range of a healthy run, where one is known.
        advice: what a value outside of that range, or a trend, says.
        train_name: for a held-out metric the training metric of the same meaning.
        exact: whether values have no noise, so that smoothing would only blur them.
    """

    name: str
    label: str
    meaning: str
    unit: str = ""
    group: Group = "other"
    merged: str = "mean over updates"
    better: Literal["", "higher", "lower"] = ""
    healthy: tuple[float, float] | None = None
    advice: str = ""
    train_name: str = ""
    exact: bool = False


TOKENS = "mean over the tokens in the loss"
ROWS = "mean over responses"
EXAMPLES = "mean over examples"
ROLLOUT = "mean over the responses of the rollouts"
STEPS = "mean over steps"
"""How values of several updates, micro-batches and ranks become one line."""

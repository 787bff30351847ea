"""Meaning, unit and healthy range of every metric that a run writes to `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rlhf_cli.report.metric import ROLLOUT, Metric
from rlhf_cli.report.result_metrics import RESULT
from rlhf_cli.report.rollout_metrics import KL, LENGTH, VALUE
from rlhf_cli.report.training_metrics import SPEED, UPDATE
from rlhf_cli.runs.record import EVAL

METRICS: Mapping[str, Metric] = {
    metric.name: metric for metric in (*RESULT, *KL, *LENGTH, *VALUE, *UPDATE, *SPEED)
}
"""Name -> metric, without `eval/`; in the order in which a report shows them."""

_TERM = Metric(
    name="score/",
    label="Score of one reward",
    meaning="Mean score of one term of the reward, before its weight.",
    group="result",
    merged=ROLLOUT,
)


def find(name: str) -> Metric | None:
    """What is known of a metric, by its name in `metrics.jsonl`; None for a foreign one.

    A held-out metric (`eval/NAME`) has the entry of its plain name; one term of the reward
    (`score/NAME`) has the entry of all terms, with its own name in the label.
    """
    plain = name.removeprefix(EVAL)
    if plain.startswith(_TERM.name) and plain != _TERM.name:
        term = plain.removeprefix(_TERM.name)
        return replace(_TERM, name=plain, label=f"Score of reward “{term}”")
    return METRICS.get(plain)


def describe(name: str) -> Metric:
    """As `find`; a foreign metric is its own label and has no meaning."""
    plain = name.removeprefix(EVAL)
    return find(name) or Metric(name=plain, label=plain, meaning="", merged="")

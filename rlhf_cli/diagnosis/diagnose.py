"""All rules, and the diagnosis of a run by those that fit it."""

from collections.abc import Callable, Sequence

from rlhf_cli.diagnosis import (
    kl,
    online,
    outcome,
    ppo,
    preference,
    reward,
    rollouts,
    training,
    unpaired,
)
from rlhf_cli.diagnosis.findings import ORDER, Finding
from rlhf_cli.errors import first_line
from rlhf_cli.runs.record import RunRecord

Rule = Callable[[RunRecord], Finding | None]
"""Reads a record; None where the record does not have what the rule needs."""

RULES_OF_STAGE: dict[str, Sequence[Rule]] = {
    "pretrain": training.RULES,
    "sft": training.RULES,
    "reward": (*training.RULES, *reward.RULES),
    "dpo": (*training.RULES, *preference.RULES, *unpaired.KTO_RULES),
    "bco": (*training.RULES, *unpaired.RULES),
    "distill": (training.loss_falls, training.gradients),
    "ppo": (*ppo.RULES, *kl.RULES, *rollouts.RULES),
    "grpo": (*ppo.RULES, *kl.RULES, *rollouts.RULES),
}


EXPLAINS = {
    "reward.swapped": ("loss.overfit", "reward.length"),
    "dpo.swapped": ("loss.overfit",),
    "labels.swapped": ("loss.overfit",),
    "ppo.constant_reward": (
        *("ppo.score_flat", "ppo.value", "ppo.constant_groups"),
        *("dpo.score_flat", "dpo.ties"),
    ),
    "ppo.negative_kl": ("ppo.truncated_sampling",),
}
"""Code -> codes that it is the cause of, and that are left out beside it."""


def _apply(rule: Rule, record: RunRecord) -> Finding | None:
    """Apply a rule; a record of another tool or version may hold what it cannot read."""
    try:
        return rule(record)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        name = getattr(rule, "__name__", "rule")
        sentence = f"The check {name} could not read this run ({first_line(error)})."
        return Finding(code=f"unread.{name}", severity="note", sentence=sentence)


def _rules_of(record: RunRecord) -> Sequence[Rule]:
    """Rules of a run's stage; online DPO has some of those of PPO."""
    if record.stage == "dpo" and record.options.get("online"):
        return (*online.RULES, *rollouts.RULES)
    return RULES_OF_STAGE.get(record.stage, ())


def diagnose(record: RunRecord) -> list[Finding]:
    """Apply all rules that fit a run; the worst findings come first, then in the rules' order."""
    rules = (*outcome.RULES, *_rules_of(record))
    found = [finding for rule in rules if (finding := _apply(rule, record)) is not None]
    explained = {
        code
        for finding in found
        if finding.severity != "ok"
        for code in EXPLAINS.get(finding.code, ())
    }
    found = [finding for finding in found if finding.code not in explained]
    return sorted(found, key=lambda one: ORDER.index(one.severity))

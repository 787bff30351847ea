"""All rules, and the diagnosis of a run by those that fit it."""

from collections.abc import Callable, Sequence

from rlhf_cli.diagnosis import outcome, ppo, preference, reward, rollouts, training, unpaired
from rlhf_cli.diagnosis.findings import ORDER, Finding
from rlhf_cli.runs.record import RunRecord

Rule = Callable[[RunRecord], Finding | None]
"""Reads a record; None where the record does not have what the rule needs."""

RULES_OF_STAGE: dict[str, Sequence[Rule]] = {
    "pretrain": training.RULES,
    "sft": training.RULES,
    "reward": (*training.RULES, *reward.RULES),
    "dpo": (*training.RULES, *preference.RULES, *unpaired.KTO_RULES),
    "bco": (*training.RULES, *unpaired.RULES),
    "ppo": (*ppo.RULES, *rollouts.RULES),
}


def diagnose(record: RunRecord) -> list[Finding]:
    """Apply all rules that fit a run; the worst findings come first, then in the rules' order."""
    rules = (*outcome.RULES, *RULES_OF_STAGE.get(record.stage, ()))
    found = [finding for rule in rules if (finding := rule(record)) is not None]
    return sorted(found, key=lambda one: ORDER.index(one.severity))

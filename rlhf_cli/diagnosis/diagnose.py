"""All rules, and the diagnosis of a run by those that fit it."""

from collections.abc import Callable, Sequence

from rlhf_cli.diagnosis import kl, outcome, ppo, preference, reward, rollouts, training, unpaired
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
    "ppo": (*ppo.RULES, *kl.RULES, *rollouts.RULES),
}


EXPLAINS = {
    "reward.swapped": ("loss.overfit", "reward.length"),
    "dpo.swapped": ("loss.overfit",),
    "labels.swapped": ("loss.overfit",),
    "ppo.constant_reward": ("ppo.score_flat", "ppo.value", "ppo.constant_groups"),
    "ppo.negative_kl": ("ppo.truncated_sampling",),
}
"""Code -> codes that it is the cause of, and that are left out beside it."""


def diagnose(record: RunRecord) -> list[Finding]:
    """Apply all rules that fit a run; the worst findings come first, then in the rules' order."""
    rules = (*outcome.RULES, *RULES_OF_STAGE.get(record.stage, ()))
    found = [finding for rule in rules if (finding := rule(record)) is not None]
    explained = {
        code
        for finding in found
        if finding.severity != "ok"
        for code in EXPLAINS.get(finding.code, ())
    }
    found = [finding for finding in found if finding.code not in explained]
    return sorted(found, key=lambda one: ORDER.index(one.severity))

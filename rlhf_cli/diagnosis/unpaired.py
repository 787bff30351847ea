"""Rules about runs on labeled responses: bco, and dpo with the loss kto."""

from rlhf_cli.diagnosis.findings import Finding
from rlhf_cli.diagnosis.preference import word_of_loss
from rlhf_cli.diagnosis.series import MIN_LINES, change, late, number, peak_rate, scaled, values_of
from rlhf_cli.runs.record import RunRecord

LEARNED_GAP = 0.02
"""Difference of the two classes' rewards, nats, below which nothing was learned."""

LARGE_SHIFT = 1.0
"""Shift δ, nats, above which it may dominate: a reward of 1 is a likelihood ratio of e^(1/β)."""

SAME_WAY = 0.5
"""Reward that both classes may have moved in the same direction, nats."""

RARE = 0.2
"""Share of the rarer label below which the other decides the result."""


def separation(record: RunRecord) -> Finding | None:
    """Whether desirable responses have the higher reward."""
    chosen, rejected = late(record, "rewards/chosen"), late(record, "rewards/rejected")
    if chosen is None or rejected is None or len(record.training) < MIN_LINES:
        return None
    gap = chosen - rejected
    numbers = {"chosen": chosen, "rejected": rejected}
    shown = f"{chosen:.3g} nats for desirable and {rejected:.3g} for undesirable responses"
    if abs(gap) <= LEARNED_GAP:
        return Finding(
            code="labels.stuck",
            severity="problem",
            sentence=f"The reward is {shown}: the policy did not learn to tell them apart.",
            cause=f"The learning rate, {peak_rate(record):.2g} at its peak, is too low, or labels "
            "do not follow the text.",
            advice=(scaled(record, "train.lr", 10),),
            numbers=numbers,
        )
    held_out = _held_out_gap(record)
    if held_out is not None and held_out < -LEARNED_GAP and gap > LEARNED_GAP:
        return Finding(
            code="labels.swapped",
            severity="problem",
            sentence=f"The reward is {shown} in training, and of held-out rows the undesirable "
            f"ones have {-held_out:.3g} more.",
            cause="Labels mean the opposite in one of the two files.",
            numbers={**numbers, "held_out": held_out},
        )
    sentence = f"The reward is {shown}."
    return Finding(code="labels.gap", severity="ok", sentence=sentence, numbers=numbers)


def _held_out_gap(record: RunRecord) -> float | None:
    chosen = values_of(record, "eval/rewards/chosen")
    rejected = values_of(record, "eval/rewards/rejected")
    return chosen[-1] - rejected[-1] if chosen and rejected else None


def same_direction(record: RunRecord) -> Finding | None:
    """Whether both classes moved the same way, further than they moved apart."""
    chosen, rejected = late(record, "rewards/chosen"), late(record, "rewards/rejected")
    if chosen is None or rejected is None:
        return None
    common = min(abs(chosen), abs(rejected)) if chosen * rejected > 0 else 0.0
    numbers = {"chosen": chosen, "rejected": rejected}
    if common < SAME_WAY or common < abs(chosen - rejected):
        sentence = f"Rewards of the two classes are {chosen:.3g} and {rejected:.3g} nats."
        return Finding(code="labels.direction", severity="ok", sentence=sentence, numbers=numbers)
    down = chosen < 0
    return Finding(
        code="labels.same_direction",
        severity="warning",
        sentence=f"Both classes became {'less' if down else 'more'} likely: rewards of "
        f"{chosen:.3g} and {rejected:.3g} nats.",
        cause="The rate is too high, or one label outweighs the other, and all responses move "
        "with it.",
        advice=(
            scaled(record, "train.lr", 0.3),
            "delta=balanced" if record.stage == "bco" else "desirable_weight=2",
        ),
        numbers=numbers,
    )


def shift(record: RunRecord) -> Finding | None:
    """Whether δ ran away from the rewards that it is the middle of."""
    found = change(record, "delta", MIN_LINES)
    chosen, rejected = late(record, "rewards/chosen"), late(record, "rewards/rejected")
    if found is None or chosen is None or rejected is None:
        return None
    gap = abs(chosen - rejected)
    numbers = {"first": found.first, "last": found.last}
    moving = abs(found.last) > 2 * abs(found.first)
    if abs(found.last) < max(LARGE_SHIFT, 2 * gap) or not moving:
        sentence = f"The shift δ went from {found.first:.3g} to {found.last:.3g} nats."
        return Finding(code="bco.delta", severity="ok", sentence=sentence, numbers=numbers)
    return Finding(
        code="bco.delta_diverges",
        severity="problem",
        sentence=f"The shift δ ran from {found.first:.3g} to {found.last:.3g} nats, while the two "
        f"classes are {gap:.3g} apart.",
        cause="All responses move together, and δ follows them: there is no limit to it.",
        advice=(scaled(record, "train.lr", 0.3), "delta=balanced"),
        numbers=numbers,
    )


def label_balance(record: RunRecord) -> Finding | None:
    """Share of the rarer label."""
    labels = (record.manifest.get("data") or {}).get("labels") or {}
    good, bad = labels.get("desirable", 0), labels.get("undesirable", 0)
    if not good or not bad:
        return None
    share = min(good, bad) / (good + bad)
    numbers = {"desirable": float(good), "undesirable": float(bad)}
    sentence = f"{good} responses are labeled desirable, {bad} undesirable."
    weighted = any(
        number(record, key, 1.0) != 1 for key in ("desirable_weight", "undesirable_weight")
    )
    if share >= RARE or weighted:
        return Finding(code="labels.balance", severity="ok", sentence=sentence, numbers=numbers)
    rare = "desirable" if good < bad else "undesirable"
    return Finding(
        code="labels.imbalance",
        severity="warning",
        sentence=sentence,
        cause="The gradient is mostly that of the other label; KTO's authors weight the classes "
        "so that their products with the counts are within 1 to 4/3 (arXiv:2402.01306).",
        advice=(f"{rare}_weight={max(good, bad) / min(good, bad):.2g}",),
        numbers=numbers,
    )


RULES = (separation, same_direction, shift, label_balance)


def _of_kto(record: RunRecord) -> bool:
    return word_of_loss(record) == "kto"


KTO_RULES = (
    lambda record: separation(record) if _of_kto(record) else None,
    lambda record: same_direction(record) if _of_kto(record) else None,
    lambda record: label_balance(record) if _of_kto(record) else None,
)

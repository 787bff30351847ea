"""Rules about runs on preference pairs: dpo with any of its losses of pairs."""

import math

from rlhf_cli.diagnosis.findings import Finding
from rlhf_cli.diagnosis.reward import SWAP
from rlhf_cli.diagnosis.series import (
    CHANCE,
    GAP,
    MIN_LINES,
    change,
    error_at_chance,
    late,
    number,
    peak_rate,
    scaled,
    values_of,
)
from rlhf_cli.runs.record import RunRecord

DISPLACED = 0.05
"""Fall of the chosen log-prob, as a fraction of it, that is named likelihood displacement (Razin et
al. 2024, arXiv:2410.08847; Pal et al. 2024, arXiv:2402.13228)."""

COLLAPSED = 0.5
"""Fall above which the chosen responses are hardly what the policy writes any more."""

LEARNED_MARGIN = 0.02
"""Margin of rewards, nats, below which policy and reference prefer alike."""

SATURATED = 0.98
"""Training accuracy that hardly leaves a pair to learn from."""

SATURATED_EARLY = 0.15
"""Share of the steps; an accuracy that saturates earlier shows that the responses of a pair differ
in something trivial."""


def displacement(record: RunRecord) -> Finding | None:
    """Whether chosen responses became less likely than under the reference."""
    beta = number(record, "beta", 0.1)
    now, ratio = late(record, "logps/chosen"), late(record, "rewards/chosen")
    rejected = late(record, "rewards/rejected")
    has_reference = word_of_loss(record) not in ("simpo", "cpo", "orpo")
    if now is None or ratio is None or rejected is None or not has_reference or not beta:
        return None
    fall, other = -ratio / beta, -rejected / beta
    before = now + fall
    numbers = {"chosen_fall": fall, "rejected_fall": other, "before": before, "now": now}
    share = fall / abs(before) if before else 0.0
    if share < DISPLACED:
        sentence = (
            f"The log-prob of chosen responses changed by {-fall:+.1f} nats from {before:.1f}, of "
            f"rejected ones by {-other:+.1f}."
        )
        return Finding(code="dpo.likelihood", severity="ok", sentence=sentence, numbers=numbers)
    return Finding(
        code="dpo.displacement",
        severity="problem" if share > COLLAPSED else "warning",
        sentence=(
            f"Chosen responses became less likely: from {before:.1f} to {now:.1f} nats, and "
            f"rejected ones fell by {other:.1f}, so the margin grows by making both unlikely."
        ),
        cause="Likelihood displacement: probability moves to responses that are in no pair. "
        f"The rate, {peak_rate(record):.2g}, or few differences between the two responses do this.",
        advice=(
            "loss_type=[sigmoid,sft]",
            scaled(record, "train.lr", 0.3),
            f"beta={2 * beta:g}",
        ),
        numbers=numbers,
    )


def word_of_loss(record: RunRecord) -> str:
    """The first loss of the run; `sigmoid` where it is unknown."""
    value = record.options.get("loss_type", "sigmoid")
    first = value[0] if isinstance(value, list) and value else value
    return str(first)


def stuck(record: RunRecord) -> Finding | None:
    """Whether policy and reference still prefer alike at the end."""
    margin = late(record, "rewards/margins")
    if margin is None or len(record.training) < MIN_LINES:
        return None
    chosen, rejected = late(record, "logps/chosen"), late(record, "logps/rejected")
    numbers = {"margin": margin}
    if abs(margin) > LEARNED_MARGIN:
        sentence = f"The margin of rewards reached {margin:.3g} nats."
        return Finding(code="dpo.margin", severity="ok", sentence=sentence, numbers=numbers)
    equal = chosen is not None and chosen == rejected
    rate = peak_rate(record)
    return Finding(
        code="dpo.stuck",
        severity="problem",
        sentence=f"The margin of rewards stayed at {margin:.2g} nats: the loss is still near ln 2 "
        f"({math.log(2):.3f}), and the policy prefers what its reference prefers.",
        cause="Chosen and rejected responses are the same; look at the columns of the file."
        if equal
        else f"The learning rate, {rate:.2g} at its peak, is too low for {len(record.training)} "
        "steps.",
        advice=() if equal else (scaled(record, "train.lr", 10),),
        numbers=numbers,
    )


def accuracy(record: RunRecord) -> Finding | None:
    """Held-out accuracy: below chance, or far below that of training."""
    held_out = values_of(record, "eval/rewards/accuracies")
    trained = late(record, "rewards/accuracies")
    if not held_out or trained is None or len(record.training) < MIN_LINES:
        return None
    last = held_out[-1]
    error = error_at_chance(record, unknown=1)
    numbers = {"trained": trained, "held_out": last}
    shown = f"{trained:.0%} of the training pairs and {last:.0%} of the held-out ones"
    if last < CHANCE - 2 * error and trained > CHANCE + 2 * error and trained - last > GAP:
        return Finding(
            code="dpo.swapped",
            severity="problem",
            sentence=f"{shown} are ranked as labeled: what is learned is wrong for other rows.",
            cause="Chosen and rejected are swapped in one of the two files, or mean something "
            "else there.",
            advice=(SWAP,),
            numbers=numbers,
        )
    if trained - last > max(GAP, 3 * error):
        return Finding(
            code="dpo.overfit",
            severity="warning",
            sentence=f"{shown} are ranked as labeled.",
            cause="The margin grows on the training pairs alone (overfitting).",
            advice=("train.epochs=1", scaled(record, "train.lr", 0.3)),
            numbers=numbers,
        )
    sentence = f"{shown} are ranked as labeled."
    return Finding(code="dpo.accuracy", severity="ok", sentence=sentence, numbers=numbers)


def margin_without_accuracy(record: RunRecord) -> Finding | None:
    """Whether held-out margins grow while no further pair is ranked correctly."""
    margins = values_of(record, "eval/rewards/margins")
    accuracies = values_of(record, "eval/rewards/accuracies")
    if len(margins) < 4 or len(accuracies) != len(margins):
        return None
    middle = len(margins) // 2
    grew = margins[-1] > 1.5 * margins[middle] > 0
    better = accuracies[-1] > accuracies[middle] + 0.01
    numbers = {"margin": margins[-1], "accuracy": accuracies[-1]}
    if not grew or better or accuracies[-1] >= SATURATED:
        return None
    return Finding(
        code="dpo.margin_only",
        severity="note",
        sentence=f"In the second half held-out margins grew from {margins[middle]:.3g} to "
        f"{margins[-1]:.3g} nats, and the accuracy stayed at {accuracies[-1]:.0%}.",
        cause="Further steps make the policy surer, not better.",
        advice=("train.result=best",),
        numbers=numbers,
    )


def saturated(record: RunRecord) -> Finding | None:
    """Whether nearly all pairs were ranked correctly after a few steps."""
    found = record.series("rewards/accuracies")
    if len(found) < 2 * MIN_LINES:
        return None
    early = [value for _, value in found[1 : max(4, int(SATURATED_EARLY * len(found)))]]
    whole = change(record, "rewards/accuracies")
    if whole is None or min(early[-3:]) < SATURATED or whole.last < SATURATED:
        return None
    return Finding(
        code="dpo.saturated",
        severity="warning",
        sentence=f"{early[-1]:.0%} of the pairs were ranked correctly after {len(early) + 1} "
        "logged steps.",
        cause="The two responses differ in something trivial (length, a marker, their source), or "
        "the rate is high; more steps only push the rejected ones down.",
        advice=(scaled(record, "train.lr", 0.3), "ld_alpha=0.5"),
        numbers={"accuracy": early[-1]},
    )


RULES = (displacement, stuck, accuracy, margin_without_accuracy, saturated)

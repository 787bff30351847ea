"""Rules about reward models."""

from rlhf_cli.diagnosis.findings import Finding
from rlhf_cli.diagnosis.series import (
    CHANCE,
    GAP,
    MIN_LINES,
    change,
    error_at_chance,
    late,
    scaled,
    values_of,
)
from rlhf_cli.runs.record import RunRecord

SWAP = "'data.columns={chosen:rejected,rejected:chosen}'"
"""Override that reads pairs with their responses swapped, quoted for a shell."""

FEW_ROWS = 100
"""Held-out rows that are assumed where their number is unknown."""

LENGTH_SHARE = 0.9
"""Share of held-out pairs in which a model prefers the longer response (or the shorter) above
which it measures little else; of people's choices this is about 0.6 (arXiv:2310.03716)."""

DRIFT = 5.0
"""Mean score, in margins, away from 0 above which the scale drifted; PPO's value model and
`kl_coef` depend on the scale."""


def held_out_accuracy(record: RunRecord) -> Finding | None:
    """Held-out accuracy: swapped labels, chance, or far below training."""
    held_out, trained = values_of(record, "eval/accuracy"), late(record, "accuracy")
    if not held_out or trained is None or len(record.training) < MIN_LINES:
        return None
    last, error = held_out[-1], error_at_chance(record, FEW_ROWS)
    numbers = {"trained": trained, "held_out": last, "error": error}
    shown = f"The model ranks {trained:.0%} of the training and {last:.0%} of the held-out rows "
    shown += "as labeled"
    if last < CHANCE - 3 * error and trained > CHANCE + 3 * error:
        return Finding(
            code="reward.swapped",
            severity="problem",
            sentence=f"{shown}, which is less than chance.",
            cause="Labels are swapped in one of the two files.",
            advice=(SWAP,),
            numbers=numbers,
        )
    if last < CHANCE + 2 * error:
        return Finding(
            code="reward.chance",
            severity="problem",
            sentence=f"{shown}, no better than chance (± {2 * error:.0%}).",
            cause="The rows are too few, the rate is wrong, or preferences do not follow the text.",
            advice=(scaled(record, "train.lr", 3), scaled(record, "train.lr", 0.3)),
            numbers=numbers,
        )
    if trained - last > max(GAP, 3 * error):
        return Finding(
            code="reward.overfit",
            severity="warning",
            sentence=f"{shown}.",
            cause="It learned its pairs by heart: too many epochs, too few rows.",
            advice=("train.epochs=1", scaled(record, "train.lr", 0.3)),
            numbers=numbers,
        )
    return Finding(code="reward.accuracy", severity="ok", sentence=f"{shown}.", numbers=numbers)


def length(record: RunRecord) -> Finding | None:
    """Whether the model is better than a rule that only measures length."""
    longer, prefers = (
        values_of(record, "eval/accuracy_longer"),
        values_of(record, "eval/prefers_longer"),
    )
    accuracy = values_of(record, "eval/accuracy")
    if not longer or not prefers or not accuracy:
        return None
    best = max(longer[-1], 1 - longer[-1])
    word = "longer" if longer[-1] >= CHANCE else "shorter"
    error = error_at_chance(record, FEW_ROWS)
    numbers = {"accuracy": accuracy[-1], "by_length": best, "prefers_longer": prefers[-1]}
    one_sided = max(prefers[-1], 1 - prefers[-1])
    shown = (
        f"Held-out accuracy is {accuracy[-1]:.0%}; always choosing the {word} response has "
        f"{best:.0%}, and the model prefers the longer one in {prefers[-1]:.0%} of the pairs"
    )
    if accuracy[-1] > best + error and one_sided < LENGTH_SHARE:
        return Finding(code="reward.length", severity="ok", sentence=f"{shown}.", numbers=numbers)
    learned = accuracy[-1] > CHANCE + 2 * error
    if not learned and one_sided < LENGTH_SHARE:
        return None  # named by the accuracy
    return Finding(
        code="reward.length",
        severity="problem" if one_sided >= LENGTH_SHARE else "warning",
        sentence=f"{shown}: it is no better than measuring length.",
        cause="In these pairs length predicts the preference; a policy trained on this reward "
        "will change its length. Pairs of similar length help, and reward.length_penalty in ppo.",
        numbers=numbers,
    )


def scale(record: RunRecord) -> Finding | None:
    """Whether the mean score drifted away from 0."""
    found, margin = change(record, "score", MIN_LINES), late(record, "margin")
    if found is None or margin is None:
        return None
    numbers = {"first": found.first, "last": found.last, "margin": margin}
    limit = DRIFT * max(abs(margin), 1.0)
    if abs(found.last) < limit:
        sentence = f"The mean score is {found.last:.3g}, the mean margin {margin:.3g}."
        return Finding(code="reward.scale", severity="ok", sentence=sentence, numbers=numbers)
    return Finding(
        code="reward.scale",
        severity="warning",
        sentence=f"The mean score drifted from {found.first:.3g} to {found.last:.3g}, with a mean "
        f"margin of {margin:.3g}.",
        cause="Comparisons do not fix where 0 is.",
        advice=("center_coefficient=0.01",),
        numbers=numbers,
    )


RULES = (held_out_accuracy, length, scale)

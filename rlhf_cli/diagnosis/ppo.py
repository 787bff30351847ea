"""Rules about the updates of PPO: score, value model and step size."""

import math
from statistics import median

from rlhf_cli.diagnosis.findings import Finding
from rlhf_cli.diagnosis.series import (
    MIN_LINES,
    SURE,
    change,
    counts,
    high,
    late,
    mean,
    number,
    peak_rate,
    scaled,
    times,
    values_of,
    word,
)
from rlhf_cli.runs.record import RunRecord

CLIPPED = 0.3
"""Share of clipped ratios above which updates are cut rather than made; 0.05 to 0.2 is usual."""

LARGE_UPDATE = 0.1
"""Approximate KL per token of one rollout's updates; OpenAI's PPO stops at 0.015 to 0.03."""

SMALL_UPDATE = 1e-5
"""Approximate KL per token below which the policy stands still."""

MANY_ROLLOUTS = 20
"""Rollouts after which a score that has not risen is named."""


def score(record: RunRecord) -> Finding | None:
    """Whether the score rose."""
    found = change(record, "objective/scores", MIN_LINES)
    if found is None:
        return None
    numbers = {"first": found.first, "last": found.last}
    shown = f"from {found.first:.3g} to {found.last:.3g}"
    held_out = values_of(record, "eval/score")
    learned = len(held_out) > 1 and held_out[-1] - held_out[0] > SURE * score_error(record)
    if found.rose or learned:
        of = "" if found.rose else "of held-out prompts "
        if not found.rose:
            shown = f"from {held_out[0]:.3g} to {held_out[-1]:.3g}"
        sentence = f"The score {of}rose {shown}."
        return Finding(code="ppo.score", severity="ok", sentence=sentence, numbers=numbers)
    if found.fell:
        return Finding(
            code="ppo.score_fell",
            severity="problem",
            sentence=f"The score fell {shown}.",
            cause=_cause_of_fall(record),
            advice=(scaled(record, "train.lr", 0.3), "value_warmup_steps=10"),
            numbers=numbers,
        )
    if len(record.training) < MANY_ROLLOUTS:
        return None
    return Finding(
        code="ppo.score_flat",
        severity="warning",
        sentence=f"The score did not rise in {len(record.training)} rollouts: {shown}.",
        cause=_cause_of_rest(record),
        advice=(scaled(record, "train.lr", 10 if _stands_still(record) else 3),),
        numbers=numbers,
    )


def score_error(record: RunRecord) -> float:
    """Standard error of a mean score over the held-out prompts; those of 100 if unknown."""
    data = counts(record, "held_out_data")
    deviation = late(record, "objective/score_std") or 1.0
    return deviation / math.sqrt(data.get("kept") or 100)


def _cause_of_fall(record: RunRecord) -> str:
    values = values_of(record, "value/explained_variance")
    if values and median(values) <= 0:
        return "The value model misleads the policy: it explains nothing of the returns."
    return f"Updates are too large for their noise, at a rate of {peak_rate(record):.2g}."


def _stands_still(record: RunRecord) -> bool:
    moved = high(record, "policy/approx_kl")
    return moved is not None and abs(moved) < SMALL_UPDATE


def _cause_of_rest(record: RunRecord) -> str:
    deviation = late(record, "objective/score_std")
    if deviation == 0:
        return "All responses have the same score."
    if _stands_still(record):
        return (
            f"The policy hardly moves: its KL per update is {high(record, 'policy/approx_kl'):.1g} "
            f"nats per token, at a rate of {peak_rate(record):.2g}."
        )
    return "Few rollouts, a noisy reward, or a KL penalty that outweighs it."


def value_model(record: RunRecord) -> Finding | None:
    """Whether the value model explains anything of the returns."""
    values = values_of(record, "value/explained_variance")
    if len(values) < MIN_LINES:
        return None
    half = median(values[len(values) // 2 :])
    numbers = {"explained_variance": half}
    sentence = f"The value model explains {max(half, 0):.0%} of the returns' variance"
    if half > 0:
        return Finding(code="ppo.value", severity="ok", sentence=f"{sentence}.", numbers=numbers)
    frozen = word(record, "vf_coef") == 0
    return Finding(
        code="ppo.value",
        severity="problem" if frozen else "warning",
        sentence=f"{sentence} over the second half ({half:.2g}): it is no better than a constant.",
        cause="vf_coef=0: the value model is not trained."
        if frozen
        else "It learns too slowly, or scores are too rare or too noisy to be predicted.",
        advice=(
            "vf_coef=0.1" if frozen else "value_warmup_steps=20",
            "advantage=rloo samples_per_prompt=4",
        ),
        numbers=numbers,
    )


def step_size(record: RunRecord) -> Finding | None:
    """Whether the updates of a rollout move the policy too far."""
    clipped, moved = high(record, "policy/clip_fraction"), high(record, "policy/approx_kl")
    if clipped is None or moved is None:
        return None
    numbers = {"clip_fraction": clipped, "approx_kl": moved}
    shown = f"{clipped:.0%} of the ratios are clipped, and updates move the policy by {moved:.2g} "
    shown += "nats per token"
    if clipped < CLIPPED and moved < LARGE_UPDATE:
        return Finding(code="ppo.step_size", severity="ok", sentence=f"{shown}.", numbers=numbers)
    return Finding(
        code="ppo.large_updates",
        severity="problem",
        sentence=f"{shown}: most of an update is cut off or wrong.",
        cause=f"The rate, {peak_rate(record):.2g}, is too high for "
        f"{number(record, 'ppo_epochs', 4):.0f} epochs over a rollout.",
        advice=(
            scaled(record, "train.lr", 0.3),
            times(record, "ppo_epochs", 0.5, 4),
            "early_stop_kl=0.02",
        ),
        numbers=numbers,
    )


def early_stops(record: RunRecord) -> Finding | None:
    """How often a rollout's updates ended early."""
    values = values_of(record, "policy/early_stopped")
    limit = number(record, "early_stop_kl")
    if not values or not limit:
        return None
    share = mean(values).value
    sentence = f"{share:.0%} of the rollouts ended their updates early, at early_stop_kl={limit:g}."
    if share < 0.9:
        return Finding(code="ppo.early_stop", severity="ok", sentence=sentence)
    return Finding(
        code="ppo.early_stop",
        severity="warning",
        sentence=sentence,
        cause="Rollouts are generated for updates that are not made.",
        advice=(scaled(record, "train.lr", 0.5), times(record, "ppo_epochs", 0.5, 4)),
        numbers={"share": share},
    )


RULES = (
    score,
    value_model,
    step_size,
    early_stops,
)

"""Rules about online DPO: the score of the policy's responses, and pairs that are ties.

The rules about pairs of a file do not fit: each step has pairs of its own, which the policy has
never been trained on, so that neither loss nor margin need move while the score rises.
"""

from statistics import median

from rlhf_cli.diagnosis.findings import Finding
from rlhf_cli.diagnosis.ppo import MANY_ROLLOUTS, score_error
from rlhf_cli.diagnosis.series import MIN_LINES, SURE, change, peak_rate, scaled, times, values_of
from rlhf_cli.diagnosis.training import gradients
from rlhf_cli.runs.record import RunRecord

MANY_TIES = 0.5
"""Share of ties above which most responses are generated for nothing."""


def score(record: RunRecord) -> Finding | None:
    """Whether the score of sampled or of held-out responses rose."""
    found = change(record, "objective/scores", MIN_LINES)
    if found is None:
        return None
    numbers = {"first": found.first, "last": found.last}
    shown = f"from {found.first:.3g} to {found.last:.3g}"
    held_out = values_of(record, "eval/score")
    learned = len(held_out) > 1 and held_out[-1] - held_out[0] > SURE * score_error(record)
    if found.rose or learned:
        sentence = f"The score of the policy's responses went {shown}."
        return Finding(code="dpo.score", severity="ok", sentence=sentence, numbers=numbers)
    if found.fell:
        return Finding(
            code="dpo.score_fell",
            severity="problem",
            sentence=f"The score of the policy's responses fell {shown}.",
            cause=f"Updates are too large for their noise, at a rate of {peak_rate(record):.2g}.",
            advice=(scaled(record, "train.lr", 0.3), times(record, "samples_per_prompt", 2, 4)),
            numbers=numbers,
        )
    if len(record.training) < MANY_ROLLOUTS:
        return None
    return Finding(
        code="dpo.score_flat",
        severity="warning",
        sentence=f"The score did not rise in {len(record.training)} steps: {shown}.",
        cause="Few steps, a low rate, a noisy reward, or a beta that holds the policy.",
        advice=(scaled(record, "train.lr", 3), times(record, "samples_per_prompt", 2, 4)),
        numbers=numbers,
    )


def ties(record: RunRecord) -> Finding | None:
    """Share of prompts whose best and worst response have equal scores."""
    values = values_of(record, "objective/ties")
    if not values:
        return None
    share = median(values)
    sentence = f"{share:.0%} of the prompts gave no pair: their responses are ties."
    numbers = {"share": share}
    if share < MANY_TIES:
        return Finding(code="dpo.ties", severity="ok", sentence=sentence, numbers=numbers)
    return Finding(
        code="dpo.ties",
        severity="problem" if share >= 0.9 else "warning",
        sentence=f"{sentence} The others alone are trained on.",
        cause="Responses to one prompt are too alike, or the reward has few values.",
        advice=(times(record, "samples_per_prompt", 2, 4), "sampling.temperature=1"),
        numbers=numbers,
    )


RULES = (score, ties, gradients)

"""What the scores of a reward model say about it: findings with numbers, causes and next steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_cli.commands.doctor.measure import RewardScores
from rlhf_cli.diagnosis.findings import ORDER, Finding, Severity
from rlhf_cli.evaluation.intervals import (
    Estimate,
    Measurement,
    Values,
    pooled_proportion,
    wilson_interval,
)
from rlhf_cli.evaluation.metrics import expected_calibration_error, pair_confidence
from rlhf_cli.evaluation.reward_quality import (
    best_of_n,
    correlation_within_prompts,
    estimate_by_prompt,
    judged_pairs,
    order_noise,
    pairs_in_order,
    partial_correlation,
    spread,
)

SWAPPED = 0.35
"""Share of pairs in order below which the labels are likely to be swapped."""

WEAK_AGREEMENT = 0.6
"""Share of pairs in order below which a reward model teaches little."""

LENGTH_PROBLEM, LENGTH_WARNING = 0.6, 0.3
"""Rank correlation with length beyond what the judge explains."""

RAW_LENGTH_PROBLEM, RAW_LENGTH_WARNING = 0.8, 0.5
"""Rank correlation with length where no judge says whether length is worth it."""

NOISE_PROBLEM, NOISE_WARNING = 1.0, 2.0
"""Spread of the scores of a prompt's responses, in multiples of the noise."""

MORE_ROWS = "more, and more varied, rows in its data"

COPIES_WARNING = 0.7
"""Share of corrupted copies scored lower."""

CALIBRATION_WARNING = 0.2
SMALL_GAIN = 0.25
"""Share of the gain that choosing by the judge itself would have."""

OUT_OF_RANGE = 0.2
"""Share of the policy's responses above the 99 % quantile of labelled ones."""


@dataclass(frozen=True)
class Names:
    """Paths that stand in advice, as the user gave them."""

    reward: str
    policy: str
    prompts: str
    judge: str = ""

    @property
    def own_pairs(self) -> str:
        """Command that makes training rows of the policy's own responses."""
        by = f"reward.function={self.judge}" if self.judge else "reward.function=JUDGE.py:score"
        return (
            f"rlhf generate {self.policy} prompts={self.prompts} samples_per_prompt=8 {by} "
            "output=own.jsonl, and rlhf reward data=own.jsonl"
        )


def reward_findings(found: RewardScores, names: Names, seed: int) -> list[Finding]:
    """All findings, in the order of the checks."""
    return [
        *check_agreement(found, names, seed),
        *check_labelled(found, names),
        *check_best_of_n(found, names, seed),
        *check_noise(found),
        *check_length(found, seed),
        *check_copies(found),
        *check_calibration(found, seed),
    ]


def show(estimate: Estimate) -> str:
    """Value and interval: `0.71 [0.66, 0.75]`; of a value without an interval `0.71`."""
    return estimate.as_text(".2f")


def numbers_of(estimate: Estimate, **more: float) -> dict[str, float]:
    """Numbers of a finding."""
    shown = {"value": estimate.value, "low": estimate.low, "high": estimate.high, **more}
    return {name: value for name, value in shown.items() if math.isfinite(value)}


def check_agreement(found: RewardScores, names: Names, seed: int) -> Iterator[Finding]:
    """Pairs of the policy's own responses that scores order as the judge does."""
    if found.judged is None:
        if not len(found.chosen):
            yield Finding(
                code="reward.agreement",
                severity="warning",
                sentence="Agreement was not measured: there is neither a judge nor labelled pairs.",
                advice=("judge=FILE.py:score", "data=preferences.jsonl"),
            )
        return
    right, pairs = pairs_in_order(found.scores, found.judged)
    if not pairs.sum():
        yield Finding(
            code="reward.agreement",
            severity="warning",
            sentence="The judge gives all responses to a prompt the same score, so there is no "
            "pair to agree on.",
            advice=("sampling.temperature=1", "samples_per_prompt=16"),
        )
        return
    kept = pairs > 0
    estimate = pooled_proportion("accuracy", right[kept], pairs[kept]).estimate(seed)
    what = f"{int(pairs.sum()):,} pairs of this policy's responses are in the judge's order"
    yield _agreement("reward.agreement", estimate, what, names, int(pairs.sum()))


def _agreement(code: str, estimate: Estimate, what: str, names: Names, pairs: int) -> Finding:
    severity, cause, advice = _judge_agreement(estimate, names)
    return Finding(
        code=code,
        severity=severity,
        sentence=f"{show(estimate)} of {what}.",
        cause=cause,
        advice=advice,
        numbers=numbers_of(estimate, pairs=pairs),
    )


def _judge_agreement(estimate: Estimate, names: Names) -> tuple[Severity, str, tuple[str, ...]]:
    low = estimate.value if math.isnan(estimate.low) else estimate.low
    high = estimate.value if math.isnan(estimate.high) else estimate.high
    if high < SWAPPED:
        cause = "It prefers the worse response: chosen and rejected may be swapped in its data."
        return "problem", cause, (f"rlhf score {names.reward} data=ITS_TRAINING_ROWS",)
    if high < 0.5:
        cause = "It prefers the worse response: it may score something else, such as length."
        return "problem", cause, (names.own_pairs,)
    if high < WEAK_AGREEMENT:
        return "problem", "That is little better than chance, 0.5.", (names.own_pairs,)
    if low <= 0.5:
        return (
            "warning",
            "That may be chance, 0.5: there are few pairs.",
            ("a longer file of prompts",),
        )
    if low < WEAK_AGREEMENT:
        return "warning", f"That may be below {WEAK_AGREEMENT}.", (names.own_pairs,)
    return "ok", "", ()


def check_labelled(found: RewardScores, names: Names) -> Iterator[Finding]:
    """Accuracy on labelled pairs, and whether the policy's responses score in their range."""
    if not len(found.chosen):
        return
    signs = np.sign(found.chosen - found.rejected)
    estimate = wilson_interval(float(((signs + 1) / 2).sum()), len(signs))
    what = f"{len(signs):,} labelled pairs are in order"
    yield _agreement("reward.labelled", estimate, what, names, len(signs))
    top = float(np.quantile([*found.chosen, *found.rejected], 0.99))
    above = wilson_interval(float((found.scores > top).sum()), found.scores.size)
    outside = above.value > OUT_OF_RANGE
    yield Finding(
        code="reward.range",
        severity="warning" if outside else "ok",
        sentence=f"{show(above)} of the policy's responses score above {top:.3g}, the 99 % "
        "quantile of the labelled ones.",
        cause="There the labels say nothing about it." if outside else "",
        advice=(names.own_pairs,) if outside else (),
        numbers=numbers_of(above),
    )


def check_best_of_n(found: RewardScores, names: Names, seed: int) -> Iterator[Finding]:
    """Gain in the judge's score from choosing the best of K by score."""
    if found.judged is None:
        return
    curve = best_of_n(found.scores, found.judged)
    most = best_of_n(found.judged, found.judged)
    count = curve.shape[1]
    gain = Measurement("gain", (curve[:, -1] - curve[:, 0],)).estimate(seed)
    possible = float((most[:, -1] - most[:, 0]).mean())
    peak = int(curve.mean(0).argmax())
    fall = Measurement("fall", (curve[:, peak] - curve[:, -1],)).estimate(seed)
    share = gain.value / possible if possible > 0 else math.nan
    severity, cause = _judge_gain(gain, share, fall, peak + 1)
    of = f", {share:.0%} of the {possible:.3g} that is possible" if possible > 0 else ""
    yield Finding(
        code="reward.best_of_n",
        severity=severity,
        sentence=f"The best of {count} by score gains {show(gain)} in the judge's score over one "
        f"response{of}.",
        cause=cause,
        advice=() if severity == "ok" else (names.own_pairs,),
        numbers=numbers_of(gain, share=share, possible=possible, best_n=peak + 1),
    )


def _judge_gain(gain: Estimate, share: float, fall: Estimate, best: int) -> tuple[Severity, str]:
    if gain.high < 0:
        return "problem", "Choosing by score makes responses worse, and so will training on it."
    if not gain.low > 0:
        return "warning", "No gain is shown."
    if fall.low > 0:
        return "warning", f"The best n is {best}; beyond it the score rises and the judge's falls."
    if share < SMALL_GAIN:
        return "warning", "That is little of what a better reward model would gain."
    return "ok", ""


def check_noise(found: RewardScores) -> Iterator[Finding]:
    """Spread of the scores of a prompt's responses against changes that should not matter."""
    if not spread(found.scores):
        yield Finding(
            code="reward.spread",
            severity="problem",
            sentence="All responses to a prompt have the same score, so there is nothing to learn.",
            advice=("sampling.temperature=1",),
        )
        return
    noise = {
        name: order_noise(found.scores[: len(changed)], changed)
        for name, changed in found.harmless.items()
    }
    worst_change = max(noise, key=lambda name: noise[name])
    changed = found.harmless[worst_change]
    what = f"a harmless change ({worst_change})"
    yield _noise("reward.noise", found.scores[: len(changed)], changed, what, MORE_ROWS)
    used, other = found.precision
    what = f"{other} instead of {used}"
    yield _noise("reward.precision", found.scores, found.other_precision, what, "precision=fp32")


def _noise(code: str, scores: Values, changed: Values, what: str, advice: str) -> Finding:
    wide, noise = spread(scores), order_noise(scores, changed)
    ratio = wide / noise if noise else math.inf
    right, pairs = pairs_in_order(changed, scores)
    moved = 1 - float(right.sum() / pairs.sum()) if pairs.sum() else 0.0
    severity: Severity = "ok"
    if ratio < NOISE_WARNING:
        severity = "problem" if ratio < NOISE_PROBLEM else "warning"
    times = f", {ratio:.3g} times its effect" if noise else ""
    return Finding(
        code=code,
        severity=severity,
        sentence=f"With {what}, {moved:.0%} of the pairs of a prompt's responses change their "
        f"order; the scores of its responses have a standard deviation of {wide:.3g}{times}.",
        cause="" if severity == "ok" else "Part of what a policy would learn is noise.",
        advice=() if severity == "ok" else (advice,),
        numbers={"spread": wide, "noise": noise, "order_changes": moved},
    )


def check_length(found: RewardScores, seed: int) -> Iterator[Finding]:
    """Rank correlation of scores with length within prompts, also given the judge's scores."""
    if not found.lengths.std(1).any():
        return
    raw = estimate_by_prompt(correlation_within_prompts, found.scores, found.lengths, seed=seed)
    limits, weighed, given = (RAW_LENGTH_PROBLEM, RAW_LENGTH_WARNING), raw, ""
    if found.judged is not None and found.judged.std(1).any():
        limits = (LENGTH_PROBLEM, LENGTH_WARNING)
        three = (found.scores, found.lengths, found.judged)
        weighed = estimate_by_prompt(partial_correlation, *three, seed=seed)
        own = correlation_within_prompts(found.judged, found.lengths)
        given = f", {show(weighed)} given the judge's scores, whose own is {own:.2f}"
    least = _least_magnitude(weighed)
    severity: Severity = "ok"
    if least > limits[1]:
        severity = "problem" if least > limits[0] else "warning"
    longer = "longer" if weighed.value > 0 else "shorter"
    yield Finding(
        code="reward.length",
        severity=severity,
        sentence=f"Rank correlation of score and length within prompts: {show(raw)}{given}.",
        cause="" if severity == "ok" else f"A policy trained on it will write {longer} responses.",
        advice=()
        if severity == "ok"
        else (
            "pairs of equal length in its data",
            "a term {length_penalty: 0.01} in reward.terms",
        )[: 2 if weighed.value > 0 else 1],
        numbers=numbers_of(weighed, raw=raw.value),
    )


def _least_magnitude(estimate: Estimate) -> float:
    """Smallest magnitude in the interval; 0 if it holds 0, or if the value is undefined."""
    if math.isnan(estimate.value):
        return 0.0
    if math.isnan(estimate.low):
        return abs(estimate.value)
    return 0.0 if estimate.low <= 0 <= estimate.high else min(abs(estimate.low), abs(estimate.high))


def check_copies(found: RewardScores) -> Iterator[Finding]:
    """Share of corrupted copies that score below the response; ties count half."""
    for kind, copies in found.copies.items():
        n = len(copies.copy)
        if not n:
            continue
        below = (np.sign(copies.original - copies.copy) + 1) / 2
        share = wilson_interval(float(below.sum()), n)
        severity: Severity = "ok"
        if share.value < COPIES_WARNING:
            severity = "problem" if share.high < 0.5 else "warning"
        shorten = kind in ("cut in half", "empty")
        yield Finding(
            code=f"reward.copies.{kind.replace(' ', '_').replace(chr(39), '')}",
            severity=severity,
            sentence=f"{show(share)} of {n} copies ({kind}) score below the response.",
            cause="" if severity == "ok" else "A policy can learn to write such responses.",
            advice=() if severity == "ok" else (_copy_advice(shorten),),
            numbers=numbers_of(share, left_out=copies.left_out),
        )


def _copy_advice(shortened: bool) -> str:
    if shortened:
        return "min_new_tokens in PPO, or such copies as rejected responses in its data"
    return "such copies as rejected responses in its data"


def check_calibration(found: RewardScores, seed: int) -> Iterator[Finding]:
    """Error of the Bradley-Terry probabilities of pairs against the judge's or labels' order."""
    better, worse = calibration_pairs(found)
    if not len(better):
        return
    predicted, right = pair_confidence(better, worse)
    error = Measurement("error", (predicted, right), pair_error).estimate(seed)
    severity: Severity = "warning" if error.value > CALIBRATION_WARNING else "ok"
    mean = float(predicted.mean())
    over = "too sure" if mean > float(right.mean()) else "not sure enough"
    yield Finding(
        code="reward.calibration",
        severity=severity,
        sentence=f"The score gives the better of two responses {mean:.2f} in the mean and is right "
        f"in {float(right.mean()):.2f}; calibration error {show(error)}.",
        cause=f"It is {over}." if severity == "warning" else "",
        advice=("reward.scale=running in PPO",) if severity == "warning" else (),
        numbers=numbers_of(error, predicted=mean, right=float(right.mean())),
    )


def calibration_pairs(found: RewardScores) -> tuple[Values, Values]:
    """Scores of the better and the worse response of each judged, else labelled, pair."""
    if found.judged is not None:
        return judged_pairs(found.scores, found.judged)
    return found.chosen, found.rejected


def pair_error(predicted: Values, right: Values) -> Any:
    """Expected calibration error of pairs, whose probabilities are 0.5 or more."""
    return expected_calibration_error(predicted, right, low=0.5)


def worst(findings: Sequence[Finding]) -> Severity:
    """The worst severity among findings."""
    return min((one.severity for one in findings), key=ORDER.index)

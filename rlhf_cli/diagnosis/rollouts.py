"""Rules about responses of PPO: what the reward has made of them since the first rollouts.

A run applies them to every rollout as it comes, the diagnosis to the last rollouts of a run.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import fmean, median

from rlhf_cli.diagnosis.findings import Finding
from rlhf_cli.diagnosis.rollout_advice import (
    LESS_RATE,
    MORE_ENDS,
    MORE_KL,
    MORE_TOKENS,
    concrete,
    more_ends,
)
from rlhf_cli.diagnosis.series import change_of, correlation, number, times, values_of
from rlhf_cli.runs.record import RunRecord

BASELINE_ROLLOUTS = 5
"""First rollouts, whose means later ones are compared with; and last ones in the diagnosis."""

MIN_ENTROPY = 0.25
"""Fraction of the baseline's entropy below which responses have little left to vary."""

LENGTH_DRIFT = 2.0
"""Factor by which responses may get longer or shorter than the baseline's."""

MIN_ENDED = 0.5
"""Fraction of the baseline's share of responses that ended by themselves."""

ENDS_LESS = 0.85
"""The same fraction, for a fall over a whole run that is more than noise."""

FEW_ENDED = 0.5
"""Share of responses with an end token below which most are cut off."""

MIN_DISTINCT = 0.25
"""Share of distinct responses."""

BY_LENGTH = 0.5
"""Correlation of score and length of the logged samples that says that length is rewarded."""

MIN_SAMPLES = 12
"""Samples below which their correlation says nothing."""

Rollout = Mapping[str, float]
"""Means over rollouts: `score`, `entropy` (nats per token), `length` (tokens), `ended` and
`distinct` (shares), and `deviation` of the scores; those that are unknown are left out."""

METRICS = {
    "score": "objective/scores",
    "entropy": "policy/entropy",
    "length": "tokens/response_length",
    "ended": "tokens/eos_fraction",
    "distinct": "rollout/distinct",
    "deviation": "objective/score_std",
}
"""Name in a `Rollout` -> metric."""


def symptoms(first: Rollout, now: Rollout) -> list[Finding]:
    """Compare rollouts with the first ones.

    Args:
        first: means over the first `BASELINE_ROLLOUTS` rollouts.
        now: of the rollouts that are judged.

    Returns:
        Problems and warnings only.
    """
    found = (check(first, now) for check in CHECKS)
    return [one for one in found if one is not None]


def ends(first: Rollout, now: Rollout) -> Finding | None:
    """Whether responses still end by themselves."""
    if "ended" not in now:
        return None
    numbers = {"first": first.get("ended", now["ended"]), "now": now["ended"]}
    advice = (MORE_ENDS,)
    if now["ended"] == 0:
        return Finding(
            code="ppo.eos",
            severity="problem",
            sentence="No response ended by itself.",
            cause="The policy has not learned to stop, or has unlearned it, or responses are cut "
            "off before they end.",
            advice=(*advice, MORE_TOKENS),
            numbers=numbers,
        )
    if now["ended"] < MIN_ENDED * numbers["first"]:
        return Finding(
            code="ppo.eos",
            severity="problem",
            sentence=f"{now['ended']:.0%} of the responses ended by themselves, "
            f"{numbers['first']:.0%} at first.",
            cause="Nothing in the reward asks for an end, and a longer response scores higher.",
            advice=advice,
            numbers=numbers,
        )
    return None


def entropy(first: Rollout, now: Rollout) -> Finding | None:
    """Whether the entropy collapsed while the score rose, or without that."""
    before, after = first.get("entropy", 0.0), now.get("entropy")
    if after is None or after >= MIN_ENTROPY * before:
        return None
    numbers = {"first": before, "now": after}
    shown = f"the entropy fell from {before:.3f} to {after:.3f} nats per token"
    rose = now.get("score", 0.0) > first.get("score", 0.0)
    if not rose:
        return Finding(
            code="ppo.entropy",
            severity="problem",
            sentence=f"{shown[0].upper()}{shown[1:]}, and the score did not rise.",
            cause="The policy has collapsed on a few responses.",
            advice=(LESS_RATE, MORE_KL),
            numbers=numbers,
        )
    return Finding(
        code="ppo.reward_hacking",
        severity="problem",
        sentence=f"The score rose from {first['score']:.2f} to {now['score']:.2f} while {shown}.",
        cause="The policy repeats what the reward likes (reward hacking): read samples.jsonl.",
        advice=(MORE_KL, LESS_RATE),
        numbers=numbers,
    )


def length(first: Rollout, now: Rollout) -> Finding | None:
    """Whether responses became much longer or shorter."""
    if "length" not in now:
        return None
    before, after = first.get("length", now["length"]), now["length"]
    drift = after / max(before, 1.0)
    if 1 / LENGTH_DRIFT <= drift <= LENGTH_DRIFT:
        return None
    return Finding(
        code="ppo.length",
        severity="warning",
        sentence=f"Responses have {after:.0f} tokens, {before:.0f} at first ({drift - 1:+.0%}).",
        cause="Does the reward depend on length?",
        advice=("reward.length_penalty=0.01",) if drift > 1 else (),
        numbers={"first": before, "now": after},
    )


def distinct(first: Rollout, now: Rollout) -> Finding | None:
    """Whether most responses are the same."""
    del first
    if now.get("distinct", 1.0) > MIN_DISTINCT:
        return None
    return Finding(
        code="ppo.distinct",
        severity="problem",
        sentence=f"Only {now['distinct']:.0%} of the responses are distinct.",
        cause="The policy has collapsed, or the temperature is too low.",
        advice=(MORE_KL, "sampling.temperature=1"),
        numbers={"distinct": now["distinct"]},
    )


def constant(first: Rollout, now: Rollout) -> Finding | None:
    """Whether all responses have the same score."""
    del first
    if now.get("deviation", 1.0) != 0:
        return None
    score = now.get("score", 0.0)
    return Finding(
        code="ppo.constant_reward",
        severity="problem",
        sentence=f"All scores are {score:g}; there is nothing to learn from them.",
        cause="The reward does not tell responses apart: a pattern that never matches, or a "
        "function that returns one number.",
        numbers={"score": score},
    )


Check = Callable[[Rollout, Rollout], Finding | None]

CHECKS: tuple[Check, ...] = (ends, entropy, length, distinct, constant)

_UNREMARKABLE: dict[Check, tuple[str, str, str]] = {
    ends: ("ppo.eos", "ended", "{:.0%} of the responses ended by themselves."),
    entropy: ("ppo.entropy", "entropy", "The entropy is {:.3f} nats per token."),
    length: ("ppo.length", "length", "Responses have {:.0f} tokens."),
    distinct: ("ppo.distinct", "distinct", "{:.0%} of the responses are distinct."),
    constant: ("ppo.constant_reward", "deviation", "Scores of a rollout deviate by {:.3g}."),
}
"""Check -> code, quantity and sentence where nothing was found."""


def compare_rollouts(record: RunRecord) -> tuple[Rollout, Rollout]:
    """Means over the first and over the last rollouts of a run."""
    first, last = {}, {}
    for name, metric in METRICS.items():
        values = values_of(record, metric)
        if values:
            size = min(BASELINE_ROLLOUTS, max(1, len(values) // 2))
            first[name], last[name] = fmean(values[:size]), fmean(values[-size:])
    return first, last


def _rule(check: Check) -> Callable[[RunRecord], Finding | None]:
    """The rule that applies a check to a run."""

    def rule(record: RunRecord) -> Finding | None:
        first, now = compare_rollouts(record)
        code, name, sentence = _UNREMARKABLE[check]
        if name not in now:
            return None
        found = check(first, now)
        if found is not None:
            found = replace(found, advice=tuple(concrete(record, one) for one in found.advice))
            return _of_short_run(record, found) if check is constant else found
        text = sentence.format(now[name])
        return Finding(code=code, severity="ok", sentence=text, numbers={name: now[name]})

    return rule


FEW_ROLLOUTS = 10
"""With fewer rollouts, equal scores may be those of a policy that has not learned to answer."""


def _of_short_run(record: RunRecord, found: Finding) -> Finding:
    """A finding that is a warning only in a run of few rollouts."""
    rollouts = len(values_of(record, "objective/scores"))
    if rollouts >= FEW_ROLLOUTS:
        return found
    sentence = f"{found.sentence} The run has {rollouts} rollouts only."
    return replace(found, severity="warning", sentence=sentence)


def cut_off(record: RunRecord) -> Finding | None:
    """Whether most responses were cut off from the first rollout on."""
    first, now = compare_rollouts(record)
    longest = number(record, "sampling.max_new_tokens")
    if "ended" not in now or not 0 < now["ended"] < FEW_ENDED:
        return None
    if now["ended"] < MIN_ENDED * first["ended"]:
        return None  # named by the fall
    return Finding(
        code="ppo.cut_off",
        severity="warning",
        sentence=f"{1 - now['ended']:.0%} of the responses were cut off at {longest:.0f} tokens "
        f"before they ended, {1 - first['ended']:.0%} at first.",
        cause="A response that is cut off is scored unfinished, and its end is never trained.",
        advice=(times(record, "sampling.max_new_tokens", 2, 128), more_ends(record)),
        numbers={"first": first["ended"], "now": now["ended"]},
    )


def ends_less(record: RunRecord) -> Finding | None:
    """Whether fewer responses end by themselves than at first, though still most of them."""
    first, now = compare_rollouts(record)
    moved = change_of(values_of(record, METRICS["ended"]))
    if moved is None or not moved.fell or now["ended"] >= ENDS_LESS * first["ended"]:
        return None
    if now["ended"] < MIN_ENDED * first["ended"]:
        return None  # named already
    return Finding(
        code="ppo.ends_less",
        severity="warning",
        sentence=f"{now['ended']:.0%} of the responses end by themselves, {first['ended']:.0%} at "
        "first: the policy is unlearning to stop.",
        cause="Nothing in the reward asks for an end, and a longer response scores higher.",
        advice=(more_ends(record),),
        numbers={"first": first["ended"], "now": now["ended"]},
    )


def score_by_length(record: RunRecord) -> Finding | None:
    """Correlation of score and length over the logged samples."""
    pairs = [
        (float(one["tokens"]), float(one["score"]))
        for one in record.samples
        if all(isinstance(one.get(name), int | float) for name in ("tokens", "score"))
    ]
    if len(pairs) < MIN_SAMPLES:
        return None
    lengths, scores = zip(*pairs, strict=True)
    found = correlation(lengths, scores) or 0.0
    numbers = {"correlation": found, "samples": float(len(pairs))}
    moved = change_of(values_of(record, METRICS["length"]), least=4)
    drift = moved.ratio if moved is not None else 1.0
    follows = (found > BY_LENGTH and drift > 1.2) or (found < -BY_LENGTH and drift < 0.8)
    sentence = (
        f"Score and length of {len(pairs)} logged samples correlate by {found:+.2f}, and responses "
        f"became {'longer' if drift > 1 else 'shorter'} ({drift - 1:+.0%})."
    )
    if not follows:
        return Finding(
            code="ppo.score_by_length", severity="ok", sentence=sentence, numbers=numbers
        )
    return Finding(
        code="ppo.score_by_length",
        severity="warning",
        sentence=sentence,
        cause="The reward pays for length, and the policy follows it.",
        advice=("reward.length_penalty=0.01",) if drift > 1 else (),
        numbers=numbers,
    )


def constant_groups(record: RunRecord) -> Finding | None:
    """Share of prompts whose responses all have the same score."""
    values = values_of(record, "objective/constant_groups")
    if not values:  # logs of TRL, and of runs without a KL penalty
        values = [1 - value for value in values_of(record, "objective/teaching")]
        if not any(values):
            return None
    share = median(values)
    sentence = f"{share:.0%} of the prompts have responses with equal scores, which teach nothing."
    numbers = {"share": share}
    if share < 0.5:
        return Finding(code="ppo.groups", severity="ok", sentence=sentence, numbers=numbers)
    grouped = record.options.get("advantage") in ("grpo", "rloo")
    return Finding(
        code="ppo.constant_groups",
        severity="problem" if share >= 0.9 and grouped else "warning",
        sentence=sentence,
        cause="Prompts are too easy or too hard, responses to one prompt are too alike, or the "
        "reward has few values.",
        advice=(times(record, "samples_per_prompt", 2, 4), "sampling.temperature=1"),
        numbers=numbers,
    )


RULES = (*(_rule(check) for check in CHECKS), cut_off, ends_less, score_by_length, constant_groups)

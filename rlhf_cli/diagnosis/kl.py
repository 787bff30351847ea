"""Rules about the KL of PPO: its sign, its size, and what the penalty does."""

from rlhf_cli.diagnosis.findings import Finding
from rlhf_cli.diagnosis.series import (
    SURE,
    change,
    late,
    mean,
    number,
    peak_rate,
    scaled,
    values_of,
    word,
)
from rlhf_cli.runs.record import RunRecord

NEGATIVE_KL = -0.003
"""Nats per token below which a mean KL is not rounding."""

FAR = 0.3
"""Nats per token from the reference beyond which a reward model judges text unlike its own; runs
that their authors report stay at 10 to 30 nats per response (arXiv:2203.02155, 2210.10760)."""

NEAR_LIMIT = 0.5
"""Fraction of `kl_limit`, which stops the run."""

MISMATCH = 0.05
"""Mean difference of the sampler's log-probs, nats per token; bf16 alone gives 0.001 to 0.01."""

_CUTS = {"top_p": 1.0, "top_k": 0.0, "min_p": 0.0, "min_new_tokens": 0.0}


def negative_kl(record: RunRecord) -> Finding | None:
    """Whether the KL is negative beyond noise, which no KL of samples of the policy is."""
    values = values_of(record, "objective/kl")
    if len(values) < 4:
        return None
    half = values[len(values) // 2 :]
    found, tokens = mean(half), late(record, "tokens/response_length") or 1.0
    numbers = {"kl": found.value, "error": found.error}
    sure = found.value < -SURE * found.error and found.value / tokens < NEGATIVE_KL
    if not sure:
        sentence = f"The KL from the reference is {found.value:.3g} nats per response."
        return Finding(code="ppo.kl", severity="ok", sentence=sentence, numbers=numbers)
    cause, advice = _cause_of_negative_kl(record)
    return Finding(
        code="ppo.negative_kl",
        severity="problem",
        sentence=f"The KL from the reference is negative: {found.value:.3g} nats per response "
        f"(± {2 * found.error:.2g}) over the second half. The penalty then rewards the distance.",
        cause=cause,
        advice=advice,
        numbers=numbers,
    )


def _cause_of_negative_kl(record: RunRecord) -> tuple[str, tuple[str, ...]]:
    """Why log-probs are not those of the distribution that was sampled."""
    cuts = [
        name
        for name, default in _CUTS.items()
        if number(record, f"sampling.{name}", default) != default
    ]
    if cuts:
        named = ", ".join(
            f"sampling.{name}={number(record, f'sampling.{name}'):g}" for name in cuts
        )
        advice = tuple(f"sampling.{name}={_CUTS[name]:g}" for name in cuts)
        return (
            f"{named} removes tokens from sampling, and the log-probs are those of the whole "
            "distribution: the mean over such samples is no KL.",
            advice,
        )
    mismatch = late(record, "rollout/mismatch") or 0.0
    if word(record, "rollout_logprobs") == "reuse" and mismatch > MISMATCH:
        return (
            f"The sampler's log-probs differ from those of the updates by {mismatch:.2g} nats per "
            "token.",
            ("rollout_logprobs=recompute",),
        )
    if record.tool != "rlhf":
        return (
            "Most often a generation config with top_p, top_k or another temperature than the "
            "trainer's, dropout left on, or padding that is scored.",
            (),
        )
    return (
        "Sampled tokens and log-probs are of different distributions, or the policy moves within "
        "a rollout: look at policy/ratio and policy/approx_kl.",
        (scaled(record, "train.lr", 0.3),),
    )


def truncated_sampling(record: RunRecord) -> Finding | None:
    """Whether tokens were excluded from sampling that have probability in the updates."""
    cuts = [
        f"sampling.{name}"
        for name, default in _CUTS.items()
        if number(record, f"sampling.{name}", default) != default
    ]
    if record.tool != "rlhf" or not record.config:
        return None
    if not cuts:
        return Finding(
            code="ppo.sampling",
            severity="ok",
            sentence="Responses are sampled from the whole distribution.",
        )
    values = [f"{key}={number(record, key):g}" for key in cuts]
    advice = tuple(f"{key}={_CUTS[key.removeprefix('sampling.')]:g}" for key in cuts)
    kl = values_of(record, "objective/kl")
    shown = f" The logged KL of {mean(kl).value:.3g} nats is therefore biased." if kl else ""
    return Finding(
        code="ppo.truncated_sampling",
        severity="warning",
        sentence=f"{', '.join(values)} excludes tokens from sampling that have probability in the "
        f"policy that is trained.{shown}",
        cause="KL, ratio and gradient are those of another distribution than the samples'.",
        advice=advice,
    )


def distance(record: RunRecord) -> Finding | None:
    """Whether the policy is far from the reference, and why the penalty does not hold it."""
    kl, tokens = late(record, "objective/kl"), late(record, "tokens/response_length")
    if kl is None or len(record.training) < 4:
        return None
    limit, target = number(record, "kl_limit", 100.0), number(record, "kl_target", 6.0)
    adaptive = word(record, "kl_controller") == "adaptive"
    per_token = kl / tokens if tokens else 0.0
    numbers = {"kl": kl, "per_token": per_token}
    over_target = adaptive and kl > 2 * target
    if kl < NEAR_LIMIT * limit and per_token < FAR and not over_target:
        sentence = f"The KL is {per_token:.3f} nats per token; kl_limit is {limit:g} per response."
        return Finding(code="ppo.distance", severity="ok", sentence=sentence, numbers=numbers)
    coefficient = late(record, "objective/kl_coef")
    coefficient = number(record, "kl_coef") if coefficient is None else coefficient
    return Finding(
        code="ppo.far",
        severity="problem",
        sentence=f"The policy is {kl:.3g} nats per response from its reference "
        f"({per_token:.2g} per token)"
        + (f", the target is {target:g}." if adaptive else f"; the run stops at {limit:g}."),
        cause=_cause_of_distance(record, kl, coefficient),
        advice=(_more_kl(coefficient), scaled(record, "train.lr", 0.3)),
        numbers={**numbers, "kl_coef": coefficient},
    )


def _cause_of_distance(record: RunRecord, kl: float, coefficient: float) -> str:
    if not coefficient:
        return (
            "kl_coef=0: nothing holds the policy, and a reward is reliable only near the text it "
            "was made for."
        )
    gain = change(record, "objective/scores", 4)
    paid = coefficient * kl
    if gain is not None and gain.difference > 3 * paid:
        return (
            f"The penalty has no effect: {paid:.2g} for this KL, against {gain.difference:.2g} "
            "gained in score."
        )
    return f"The rate, {peak_rate(record):.2g}, moves the policy faster than the penalty can hold."


def _more_kl(coefficient: float) -> str:
    return f"kl_coef={4 * coefficient:.2g}" if coefficient else "kl_coef=0.05"


def no_penalty(record: RunRecord) -> Finding | None:
    """A KL coefficient of 0 beside a reward that is only an estimate."""
    if not record.config or number(record, "kl_coef", 1.0):
        return None
    kl = late(record, "objective/kl")
    shown = f" (now {kl:.3g} nats per response)" if kl is not None else ""
    learned = any(word(record, key) for key in ("reward.model", "reward.classifier", "reward.url"))
    return Finding(
        code="ppo.no_kl_penalty",
        severity="warning" if learned else "note",
        sentence=f"kl_coef=0: nothing holds the policy near its reference{shown}.",
        cause="A learned reward is reliable only on text like its training data."
        if learned
        else "This is usual with rewards that are exact.",
        advice=("kl_coef=0.05",) if learned else (),
    )


def mismatch(record: RunRecord) -> Finding | None:
    """Difference of the sampler's log-probs from those of the updates, before any update."""
    found = late(record, "rollout/mismatch")
    if found is None:
        return None
    sentence = f"The sampler's log-probs differ by {found:.2g} nats per token from the updates'."
    numbers = {"mismatch": found}
    if found < MISMATCH:
        return Finding(code="ppo.mismatch", severity="ok", sentence=sentence, numbers=numbers)
    dropout = number(record, "adapter.dropout")
    return Finding(
        code="ppo.mismatch",
        severity="warning",
        sentence=f"{sentence} The first ratio is not 1.",
        cause=f"adapter.dropout={dropout:g} acts in the updates only."
        if dropout
        else "Decoding and training compute in types or kernels that differ.",
        advice=("adapter.dropout=0",) if dropout else ("rollout_logprobs=recompute",),
        numbers=numbers,
    )


def adaptive_coefficient(record: RunRecord) -> Finding | None:
    """Whether the controller drove the KL coefficient to an extreme."""
    found = change(record, "objective/kl_coef", 4)
    if found is None or word(record, "kl_controller") != "adaptive" or found.first <= 0:
        return None
    sentence = f"The controller moved kl_coef from {found.first:.3g} to {found.last:.3g}."
    numbers = {"first": found.first, "last": found.last}
    if 0.1 < found.ratio < 10:
        return Finding(code="ppo.kl_coef", severity="ok", sentence=sentence, numbers=numbers)
    return Finding(
        code="ppo.kl_coef",
        severity="warning",
        sentence=sentence,
        cause="kl_target does not fit this task: the policy goes "
        + ("further than it." if found.ratio > 1 else "nowhere near it."),
        advice=(f"kl_target={max(0.5, late(record, 'objective/kl') or 6.0):.2g}",),
        numbers=numbers,
    )


RULES = (
    negative_kl,
    truncated_sampling,
    distance,
    no_penalty,
    mismatch,
    adaptive_coefficient,
)

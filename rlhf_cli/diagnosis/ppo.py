"""Rules about the updates of PPO: score, KL, value model and step size."""

from statistics import median

from rlhf_cli.diagnosis.findings import Finding
from rlhf_cli.diagnosis.series import (
    MIN_LINES,
    SURE,
    change,
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

NEGATIVE_KL = -0.003
"""Nats per token below which a mean KL is not rounding."""

FAR = 0.3
"""Nats per token from the reference beyond which a reward model judges text unlike its own; runs
that their authors report stay at 10 to 30 nats per response (arXiv:2203.02155, 2210.10760)."""

NEAR_LIMIT = 0.5
"""Fraction of `kl_limit`, which stops the run."""

CLIPPED = 0.3
"""Share of clipped ratios above which updates are cut rather than made; 0.05 to 0.2 is usual."""

LARGE_UPDATE = 0.1
"""Approximate KL per token of one rollout's updates; OpenAI's PPO stops at 0.015 to 0.03."""

SMALL_UPDATE = 1e-5
"""Approximate KL per token below which the policy stands still."""

MISMATCH = 0.05
"""Mean difference of the sampler's log-probs, nats per token; bf16 alone gives 0.001 to 0.01."""

MANY_ROLLOUTS = 20
"""Rollouts after which a score that has not risen is named."""

_CUTS = {"top_p": 1.0, "top_k": 0.0, "min_p": 0.0, "min_new_tokens": 0.0}


def score(record: RunRecord) -> Finding | None:
    """Whether the score rose."""
    found = change(record, "objective/scores", MIN_LINES)
    if found is None:
        return None
    numbers = {"first": found.first, "last": found.last}
    shown = f"from {found.first:.3g} to {found.last:.3g}"
    if found.rose:
        sentence = f"The score rose {shown}."
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


def _cause_of_fall(record: RunRecord) -> str:
    values = values_of(record, "value/explained_variance")
    if values and median(values) <= 0:
        return "The value model misleads the policy: it explains nothing of the returns."
    return f"Updates are too large for their noise, at a rate of {peak_rate(record):.2g}."


def _stands_still(record: RunRecord) -> bool:
    moved = late(record, "policy/approx_kl")
    return moved is not None and abs(moved) < SMALL_UPDATE


def _cause_of_rest(record: RunRecord) -> str:
    deviation = late(record, "objective/score_std")
    if deviation == 0:
        return "All responses have the same score."
    if _stands_still(record):
        return (
            f"The policy hardly moves: its KL per update is {late(record, 'policy/approx_kl'):.1g} "
            f"nats per token, at a rate of {peak_rate(record):.2g}."
        )
    return "Few rollouts, a noisy reward, or a KL penalty that outweighs it."


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
    clipped, moved = late(record, "policy/clip_fraction"), late(record, "policy/approx_kl")
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
    score,
    negative_kl,
    truncated_sampling,
    distance,
    no_penalty,
    value_model,
    step_size,
    early_stops,
    mismatch,
    adaptive_coefficient,
)

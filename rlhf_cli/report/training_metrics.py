"""Entries of the glossary: optimizer updates, throughput and memory."""

from __future__ import annotations

from rlhf_cli.report.metric import ROLLOUT, STEPS, Metric

UPDATE: tuple[Metric, ...] = (
    Metric(
        name="lr",
        label="Learning rate",
        meaning="Learning rate of the step, by train.schedule.",
        group="update",
        merged=STEPS,
        exact=True,
    ),
    Metric(
        name="grad_norm",
        label="Gradient norm",
        meaning="Global L2 norm of the gradient before it is clipped to train.max_grad_norm.",
        group="update",
        advice="Spikes point at rows or a rate that are too extreme; a constant value above "
        "train.max_grad_norm means that every step is clipped.",
    ),
    Metric(
        name="policy/ratio",
        label="Probability ratio",
        meaning="Mean ratio of the updated policy's probability of a token, or with ratio=sequence "
        "of its response, to that of the policy that sampled it.",
        group="update",
        merged="mean over response tokens",
        healthy=(0.9, 1.1),
    ),
    Metric(
        name="objective/teaching",
        label="Responses that teach",
        meaning="Share of responses with a gradient: with advantage=grpo or rloo and kl_coef=0, "
        "those whose group has different scores.",
        unit="share",
        group="update",
        merged=ROLLOUT,
        healthy=(0.3, 1.0),
        advice="Where most groups have equal scores, prompts are too easy or too hard, or the "
        "reward has too few levels.",
    ),
    Metric(
        name="objective/ties",
        label="Prompts without a pair",
        meaning="Share of prompts whose best and worst response have equal scores, or are the same "
        "response; online dpo does not train on them.",
        unit="share",
        group="update",
        merged="mean over prompts",
        better="lower",
        healthy=(0.0, 0.7),
        advice="Where most prompts are ties, take more samples_per_prompt or a higher temperature.",
    ),
    Metric(
        name="objective/constant_groups",
        label="Groups with equal scores",
        meaning="Share of prompts whose responses all have the same score; they say nothing about "
        "which response is better.",
        unit="share",
        group="update",
        merged="mean over prompts",
        better="lower",
        healthy=(0.0, 0.7),
        advice="Where most groups are constant, prompts are too easy or too hard, or the reward "
        "has too few levels.",
    ),
    Metric(
        name="policy/early_stopped",
        label="Rollouts ended early",
        meaning="Share of rollouts whose updates ended because the KL went beyond early_stop_kl.",
        unit="share",
        group="update",
        merged=STEPS,
        advice="If most rollouts end early, the rate is too large for early_stop_kl.",
    ),
    Metric(
        name="policy/clip_fraction",
        label="Clipped tokens",
        meaning="Share of response tokens whose ratio left 1 - clip_range to 1 + clip_range_high.",
        unit="share",
        group="update",
        merged="mean over response tokens",
        healthy=(0.0, 0.3),
        advice="Above 0.3 the rate, ppo_epochs or minibatches are too large for this clip_range.",
    ),
)

SPEED: tuple[Metric, ...] = (
    Metric(
        name="tokens_per_second",
        label="Throughput",
        meaning="Tokens of training rows per second of training; in ppo the rollout's time counts.",
        unit="tokens/s",
        group="speed",
        merged="tokens divided by seconds",
        better="higher",
    ),
    Metric(
        name="peak_fraction",
        label="Share of peak FLOP/s",
        meaning="FLOPs of the model's products per second, as a share of those of a large matrix "
        "product measured at the start.",
        unit="share",
        group="speed",
        merged="FLOPs divided by seconds",
        better="higher",
    ),
    Metric(
        name="step_seconds",
        label="Time of a step",
        meaning="Wall-clock time of an optimizer step; in ppo of a rollout and its updates.",
        unit="s",
        group="speed",
        merged=STEPS,
        better="lower",
    ),
    Metric(
        name="time/rollout",
        label="Time of the rollout",
        meaning="Time in which responses are generated.",
        unit="s",
        group="speed",
        merged=STEPS,
        better="lower",
    ),
    Metric(
        name="time/wait",
        label="Time waited for the rollout",
        meaning="Time in which the updates waited for a rollout; less than the time of the "
        "rollout where rollout.lag lets the two overlap.",
        unit="s",
        group="speed",
        merged=STEPS,
        better="lower",
    ),
    Metric(
        name="time/score",
        label="Time of scoring",
        meaning="Time in which responses are scored.",
        unit="s",
        group="speed",
        merged=STEPS,
        better="lower",
    ),
    Metric(
        name="time/teacher",
        label="Time of the teacher",
        meaning="Time in which a server scores the responses.",
        unit="s",
        group="speed",
        merged=STEPS,
        better="lower",
    ),
    Metric(
        name="time/update",
        label="Time of the updates",
        meaning="Time of log-probs, values and optimizer steps.",
        unit="s",
        group="speed",
        merged=STEPS,
        better="lower",
    ),
    Metric(
        name="computed_per_token",
        label="Computed per token",
        meaning="Computed positions per token of the rows: above 1 by padding, below 1 by shared "
        "prefixes.",
        group="speed",
        merged="positions divided by tokens",
        better="lower",
    ),
    Metric(
        name="memory_bytes",
        label="Peak memory",
        meaning="Largest memory so far: of the CUDA allocator, or of the process on a CPU.",
        unit="bytes",
        group="speed",
        merged="last value of rank 0",
        exact=True,
        better="lower",
    ),
)

"""Entries of the glossary: KL and entropy, lengths, and the value model."""

from __future__ import annotations

from rlhf_cli.report.metric import ROLLOUT, STEPS, TOKENS, Metric

KL: tuple[Metric, ...] = (
    Metric(
        name="objective/kl",
        label="KL from the reference",
        meaning="Mean log-ratio of policy to reference, summed over each sampled response; in "
        "online dpo of the responses in pairs.",
        unit="nats per response",
        group="kl",
        merged=ROLLOUT,
        advice="It is 0 at first and then positive. Clearly negative values mean that the sampled "
        "tokens do not come from the distribution whose log-probs are computed.",
    ),
    Metric(
        name="kl",
        label="KL from the reference",
        meaning="Mean log-ratio of policy to reference: in ppo and online dpo of sampled responses "
        "to held-out prompts, in dpo with kto the reference point z.",
        unit="nats per response",
        group="kl",
        merged=ROLLOUT,
        train_name="objective/kl",
    ),
    Metric(
        name="objective/kl_coef",
        label="KL penalty coefficient",
        meaning="kl_coef of the rollout; it changes with kl_controller=adaptive only.",
        group="kl",
        merged=ROLLOUT,
        exact=True,
    ),
    Metric(
        name="objective/entropy_coef",
        label="Coefficient of the entropy bonus",
        meaning="entropy_coef of the rollout; it changes with entropy_target only, and is 0 where "
        "the entropy is above that.",
        group="kl",
        merged=ROLLOUT,
        exact=True,
    ),
    Metric(
        name="objective/entropy",
        label="Negative log-prob of responses",
        meaning="Minus the log-prob of a sampled response, summed over its tokens: an estimate of "
        "the entropy of whole responses.",
        unit="nats per response",
        group="kl",
        merged=ROLLOUT,
    ),
    Metric(
        name="policy/entropy",
        label="Entropy of the policy",
        meaning="Mean entropy of the next-token distribution at the response's positions.",
        unit="nats per token",
        group="kl",
        merged="mean over response tokens",
        advice="A collapse towards 0 leaves nothing to explore; a larger kl_coef or a smaller lr "
        "preserves more of it.",
    ),
    Metric(
        name="entropy",
        label="Entropy of the policy",
        meaning="Mean entropy of the next-token distribution at the tokens of both responses.",
        unit="nats per token",
        group="kl",
        merged=TOKENS,
    ),
    Metric(
        name="policy/approx_kl",
        label="KL of the updates",
        meaning="How far the updates of a rollout have moved the policy from the one that sampled "
        "it: half the squared log-ratio.",
        unit="nats per token",
        group="kl",
        merged="mean over response tokens",
        healthy=(0.0, 0.1),
        advice="Above 0.1 the updates leave the region where the surrogate holds; lower lr, "
        "ppo_epochs, or set early_stop_kl.",
    ),
    Metric(
        name="rollout/mismatch",
        label="Mismatch of sampler and trainer",
        meaning="Mean absolute difference of the log-probs of the sampler and of the policy, "
        "before the first update; with a server or rollout_logprobs=reuse.",
        unit="nats per token",
        group="kl",
        merged="mean over response tokens",
        healthy=(0.0, 0.05),
    ),
    Metric(
        name="rollout/mismatch_kl",
        label="Mismatch as KL",
        meaning="KL of the sampler from the policy, before the first update (the estimate k3); "
        "with a server or rollout_logprobs=reuse.",
        unit="nats per token",
        group="kl",
        merged="mean over response tokens",
        healthy=(0.0, 0.01),
    ),
    Metric(
        name="rollout/staleness",
        label="Staleness",
        meaning="Steps by which the weights that generated a response are older than those that "
        "its step updates; 0 is on-policy.",
        unit="steps",
        group="kl",
        merged=ROLLOUT,
    ),
    Metric(
        name="correction/weight",
        label="Importance weight",
        meaning="Mean importance weight of the policy loss against the mismatch of server and "
        "policy; 1 without any.",
        group="kl",
        merged="mean over response tokens",
        healthy=(0.8, 1.2),
        advice="If it drifts from 1, lower rollout.lag, or give the server the policy's precision.",
    ),
    Metric(
        name="correction/cut",
        label="Cut importance weights",
        meaning="Share of tokens whose importance weight was cut to correction_cap, or dropped.",
        unit="share",
        group="kl",
        merged="mean over response tokens",
        healthy=(0.0, 0.05),
    ),
)

LENGTH: tuple[Metric, ...] = (
    Metric(
        name="tokens/response_length",
        label="Response length",
        meaning="Mean tokens of a response, the end token included.",
        unit="tokens",
        group="length",
        merged=ROLLOUT,
        advice="A steady drift shows that the reward depends on length (arXiv:2310.03716).",
    ),
    Metric(
        name="response_length",
        label="Response length",
        meaning="Mean tokens of a response to a held-out prompt.",
        unit="tokens",
        group="length",
        merged=ROLLOUT,
        train_name="tokens/response_length",
    ),
    Metric(
        name="tokens/eos_fraction",
        label="Responses with an end",
        meaning="Share of responses that end by themselves, with an end token or stop string, "
        "before max_new_tokens.",
        unit="share",
        group="length",
        merged=ROLLOUT,
        better="higher",
        healthy=(0.8, 1.0),
        advice="Responses that are cut have no meaningful score; raise sampling.max_new_tokens or "
        "set missing_eos_penalty.",
    ),
    Metric(
        name="eos_fraction",
        label="Responses with an end",
        meaning="Share of responses to held-out prompts that end by themselves.",
        unit="share",
        group="length",
        merged=ROLLOUT,
        better="higher",
        healthy=(0.8, 1.0),
        train_name="tokens/eos_fraction",
    ),
    Metric(
        name="rollout/distinct",
        label="Distinct responses",
        meaning="Number of different responses of a rollout, divided by all of its responses.",
        unit="share",
        group="length",
        merged=STEPS,
        healthy=(0.5, 1.0),
        advice="If it falls, the policy collapses to a few responses.",
    ),
    Metric(
        name="rollout/redrawn",
        label="Redrawn prompts",
        meaning="Prompts that dynamic_sampling drew in place of those whose responses all had the "
        "same score, divided by the prompts of the step.",
        group="length",
        merged="sum over prompts of a rollout, divided by their number",
    ),
)

VALUE: tuple[Metric, ...] = (
    Metric(
        name="loss/value",
        label="Value loss",
        meaning="Clipped squared error of the value model's predictions of the return, halved.",
        group="value",
        merged="mean over response tokens",
        better="lower",
    ),
    Metric(
        name="value/explained_variance",
        label="Explained variance",
        meaning="Share of the variance of returns that the value model predicts; 1 is perfect, 0 "
        "is no better than their mean, negative is worse.",
        group="value",
        merged="over all tokens of a rollout; mean over steps",
        better="higher",
        healthy=(0.0, 1.0),
        advice="If it stays below 0, try value_warmup_steps, value=model or a larger vf_coef.",
    ),
    Metric(
        name="value/clip_fraction",
        label="Clipped values",
        meaning="Share of tokens whose value left value_clip_range of the old value.",
        unit="share",
        group="value",
        merged="mean over response tokens",
        healthy=(0.0, 0.3),
    ),
)

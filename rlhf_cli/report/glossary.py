"""Meaning, unit and healthy range of every metric that a run writes to `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

Group = Literal["result", "kl", "length", "value", "update", "speed", "other"]

GROUPS: Mapping[Group, str] = {
    "result": "Loss and reward",
    "kl": "KL and entropy",
    "length": "Response length and end",
    "value": "Value model",
    "update": "Optimizer updates",
    "speed": "Throughput and memory",
    "other": "Other metrics",
}
"""Group of metrics -> its title, in the order in which a report shows them."""

EVAL = "eval/"
"""Prefix of metrics of held-out rows."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What is known of one metric.

    Attributes:
        name: in `metrics.jsonl`.
        label: title of its curve.
        meaning: one sentence, with its source where it has one.
        unit: of a value; empty for a number without one, `share` for 0 to 1.
        group: in which a report shows it.
        merged: how values of several updates, micro-batches and ranks become one line.
        better: the direction of an improvement, where there is one.
        healthy: lower and upper end of the range of a healthy run, where one is known.
        advice: what a value outside of that range, or a trend, says.
        train_name: for a held-out metric the training metric of the same meaning.
        exact: whether values have no noise, so that smoothing would only blur them.
    """

    name: str
    label: str
    meaning: str
    unit: str = ""
    group: Group = "other"
    merged: str = "mean over updates"
    better: Literal["", "higher", "lower"] = ""
    healthy: tuple[float, float] | None = None
    advice: str = ""
    train_name: str = ""
    exact: bool = False


TOKENS = "mean over the tokens in the loss"
ROWS = "mean over responses"
EXAMPLES = "mean over examples"
ROLLOUT = "mean over the responses of the rollouts"
STEPS = "mean over steps"

_RESULT = (
    Metric(
        name="objective/scores",
        label="Score",
        meaning="Mean score of the responses by the reward, before the KL penalty; what ppo "
        "raises.",
        group="result",
        merged=ROLLOUT,
        better="higher",
        advice="A rise without limit, with falling entropy or drifting length, is the sign of "
        "reward hacking (arXiv:2210.10760).",
    ),
    Metric(
        name="objective/score_std",
        label="Deviation of the scores",
        meaning="Standard deviation of the scores of one rollout.",
        group="result",
        merged=STEPS,
        advice="Where it is 0, all responses score alike and there is nothing to learn from them.",
    ),
    Metric(
        name="objective/rlhf_reward",
        label="Reward with KL penalty",
        meaning="Score minus kl_coef times the KL of the response: the whole reward.",
        group="result",
        merged=ROLLOUT,
        better="higher",
    ),
    Metric(
        name="loss",
        label="Loss",
        meaning="The quantity that the optimizer minimizes, per unit of the stage: a token in "
        "pretrain and sft, a pair or row in reward, dpo and bco, a response token in ppo.",
        group="result",
        better="lower",
        advice="In ppo the loss of the updates need not fall, and the held-out loss is kl_coef "
        "times the KL minus the score.",
    ),
    Metric(
        name="perplexity",
        label="Perplexity",
        meaning="exp(loss): among how many equally likely tokens the model chooses on average.",
        group="result",
        merged=TOKENS,
        better="lower",
    ),
    Metric(
        name="bits_per_byte",
        label="Bits per byte",
        meaning="Negative log-likelihood in bits per byte of text; it compares models with "
        "different tokenizers.",
        unit="bits",
        group="result",
        merged="sum over rows, divided by their bytes",
        better="lower",
    ),
    Metric(
        name="accuracy",
        label="Accuracy",
        meaning="In pretrain and sft the share of tokens that are the model's first choice; in "
        "reward the share of pairs or labels that the scores put in the right order.",
        unit="share",
        group="result",
        merged=EXAMPLES,
        better="higher",
        advice="For pairs, 0.5 is chance.",
    ),
    Metric(
        name="absolute_error",
        label="Absolute error",
        meaning="Mean distance of the reward model's score from the row's score.",
        group="result",
        merged=ROWS,
        better="lower",
    ),
    Metric(
        name="auc",
        label="AUC",
        meaning="Probability that a desirable response has a higher reward than an undesirable "
        "one; 0.5 is chance.",
        unit="share",
        group="result",
        merged="over all rows",
        better="higher",
        healthy=(0.55, 1.0),
    ),
    Metric(
        name="margin",
        label="Margin of the reward model",
        meaning="Score of the chosen response minus that of the rejected one.",
        group="result",
        merged=EXAMPLES,
        better="higher",
    ),
    Metric(
        name="accuracy_longer",
        label="Accuracy of length alone",
        meaning="Share of comparisons whose better response is the longer one: what a model that "
        "only counts tokens would reach.",
        unit="share",
        group="result",
        merged=EXAMPLES,
        advice="An accuracy that is no higher shows that the model may have learned length alone "
        "(arXiv:2310.03716).",
    ),
    Metric(
        name="prefers_longer",
        label="Preference for length",
        meaning="Share of comparisons of different lengths in which the model scores the longer "
        "response higher.",
        unit="share",
        group="result",
        merged=EXAMPLES,
        advice="It should be near the accuracy of length alone, which is the share in the labels.",
    ),
    Metric(
        name="score",
        label="Score",
        meaning="Mean score of a response: of the reward model that is trained, or in ppo of the "
        "reward on held-out prompts.",
        group="result",
        merged=ROWS,
        advice="Of a reward model only differences of scores matter, not where 0 is.",
        train_name="objective/scores",
    ),
    Metric(
        name="objective/non_score_reward",
        label="KL penalty",
        meaning="Sum of the per-token KL penalties of a response, a negative number once the "
        "policy has left the reference.",
        group="kl",
        merged=ROLLOUT,
    ),
    Metric(
        name="loss/policy",
        label="Policy loss",
        meaning="Clipped surrogate of PPO (arXiv:1707.06347, eq. 7), negated; its size says "
        "little, because advantages are whitened.",
        group="result",
        merged="mean over response tokens",
    ),
    Metric(
        name="loss/ptx",
        label="Loss on ptx_data",
        meaning="Negative log-likelihood of the text rows that are mixed in (PPO-ptx, "
        "arXiv:2203.02155).",
        unit="nats per token",
        group="result",
        merged=TOKENS,
        better="lower",
    ),
    Metric(
        name="router/balance_loss",
        label="Load balancing of experts",
        meaning="Load balancing loss of a mixture of experts (arXiv:2101.03961, eq. 4); an even "
        "load has the number of experts per token.",
        group="result",
        merged=ROWS,
        better="lower",
    ),
    Metric(
        name="rewards/chosen",
        label="Implicit reward, chosen",
        meaning="β times the log-ratio of policy to reference of chosen (desirable) responses.",
        unit="nats",
        group="result",
        merged=EXAMPLES,
        advice="If it falls along with the reward of rejected responses, the likelihood of good "
        "responses falls too (arXiv:2410.08847).",
    ),
    Metric(
        name="rewards/rejected",
        label="Implicit reward, rejected",
        meaning="β times the log-ratio of policy to reference of rejected (undesirable) responses.",
        unit="nats",
        group="result",
        merged=EXAMPLES,
        better="lower",
    ),
    Metric(
        name="rewards/margins",
        label="Reward margin",
        meaning="Implicit reward of the chosen response minus that of the rejected one.",
        unit="nats",
        group="result",
        merged=EXAMPLES,
        better="higher",
    ),
    Metric(
        name="rewards/accuracies",
        label="Accuracy of pairs",
        meaning="Share of pairs whose chosen response has the higher implicit reward; 0.5 is "
        "chance.",
        unit="share",
        group="result",
        merged=EXAMPLES,
        better="higher",
        healthy=(0.55, 1.0),
    ),
    Metric(
        name="logps/chosen",
        label="Log-prob, chosen",
        meaning="Log-prob of the whole chosen (desirable) response under the policy.",
        unit="nats",
        group="result",
        merged=EXAMPLES,
        advice="A steady fall is likelihood displacement (arXiv:2410.08847); loss_type=[sigmoid, "
        "sft] or a larger beta holds it.",
    ),
    Metric(
        name="logps/rejected",
        label="Log-prob, rejected",
        meaning="Log-prob of the whole rejected (undesirable) response under the policy.",
        unit="nats",
        group="result",
        merged=EXAMPLES,
    ),
    Metric(
        name="delta",
        label="Reward shift δ",
        meaning="BCO's δ: moving mean of the rewards, which is subtracted from each "
        "(arXiv:2404.04656).",
        unit="nats",
        group="result",
        merged=EXAMPLES,
        advice="It should level off; a δ that grows steadily pulls all rewards along.",
    ),
)

_KL = (
    Metric(
        name="objective/kl",
        label="KL from the reference",
        meaning="Mean log-ratio of policy to reference, summed over each sampled response.",
        unit="nats per response",
        group="kl",
        merged=ROLLOUT,
        advice="It is 0 at first and then positive. Clearly negative values mean that the sampled "
        "tokens do not come from the distribution whose log-probs are computed.",
    ),
    Metric(
        name="kl",
        label="KL from the reference",
        meaning="Mean log-ratio of policy to reference: in ppo of sampled responses to held-out "
        "prompts, in dpo with kto the reference point z.",
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
        meaning="Mean absolute difference of the log-probs of the sampler and of the updates, "
        "before the first update; only with rollout_logprobs=reuse.",
        unit="nats per token",
        group="kl",
        merged="mean over response tokens",
        healthy=(0.0, 0.05),
    ),
    Metric(
        name="rollout/mismatch_kl",
        label="Mismatch as KL",
        meaning="The mismatch of sampler and trainer as a KL estimate.",
        unit="nats per token",
        group="kl",
        merged="mean over response tokens",
        healthy=(0.0, 0.01),
    ),
)

_LENGTH = (
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
)

_VALUE = (
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

_UPDATE = (
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
        meaning="Mean ratio of the updated policy's probability of a token to that of the policy "
        "that sampled it.",
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
        meaning="Share of response tokens whose ratio left 1 ± clip_range.",
        unit="share",
        group="update",
        merged="mean over response tokens",
        healthy=(0.0, 0.3),
        advice="Above 0.3 the rate, ppo_epochs or minibatches are too large for this clip_range.",
    ),
)

_SPEED = (
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
        name="time/score",
        label="Time of scoring",
        meaning="Time in which responses are scored.",
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

METRICS: Mapping[str, Metric] = {
    metric.name: metric for metric in (*_RESULT, *_KL, *_LENGTH, *_VALUE, *_UPDATE, *_SPEED)
}
"""Name -> metric, without `eval/`; in the order in which a report shows them."""

_TERM = Metric(
    name="score/",
    label="Score of one reward",
    meaning="Mean score of one term of the reward, before its weight.",
    group="result",
    merged=ROLLOUT,
)


def find(name: str) -> Metric | None:
    """What is known of a metric, by its name in `metrics.jsonl`; None for a foreign one.

    A held-out metric (`eval/NAME`) has the entry of its plain name; one term of the reward
    (`score/NAME`) has the entry of all terms, with its own name in the label.
    """
    plain = name.removeprefix(EVAL)
    if plain.startswith(_TERM.name) and plain != _TERM.name:
        term = plain.removeprefix(_TERM.name)
        return replace(_TERM, name=plain, label=f"Score of reward “{term}”")
    return METRICS.get(plain)


def describe(name: str) -> Metric:
    """As `find`; a foreign metric is its own label and has no meaning."""
    plain = name.removeprefix(EVAL)
    return find(name) or Metric(name=plain, label=plain, meaning="", merged="")

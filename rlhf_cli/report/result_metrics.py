"""Entries of the glossary: losses, rewards, accuracies and log-probs."""

from __future__ import annotations

from rlhf_cli.report.metric import EXAMPLES, ROLLOUT, ROWS, STEPS, TOKENS, Metric

RESULT: tuple[Metric, ...] = (
    Metric(
        name="objective/scores",
        label="Score",
        meaning="Mean score of the responses by the reward, before the KL penalty; what ppo and "
        "online dpo raise.",
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
        name="objective/score_margin",
        label="Score margin of the pairs",
        meaning="Mean difference of the scores of the best and the worst response to a prompt, in "
        "online dpo; ties count as 0.",
        group="result",
        merged="mean over prompts",
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
        "pretrain, sft and distill, a pair or row in reward, dpo and bco, a response token in ppo.",
        group="result",
        better="lower",
        advice="In ppo and online dpo the loss of the updates need not fall, and the held-out loss "
        "is kl_coef (of dpo: beta) times the KL minus the score.",
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
        meaning="Mean score of a response: of the reward model that is trained, or in ppo and "
        "online dpo of the reward on held-out prompts.",
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
        meaning="Clipped surrogate of PPO (arXiv:1707.06347, eq. 7), negated, or that of "
        "policy_loss; its size says little, because advantages are normalized.",
        group="result",
        merged="mean as loss_aggregation says",
    ),
    Metric(
        name="divergence/student",
        label="Divergence on the student's responses",
        meaning="Mean divergence from the teacher at the tokens that the student sampled; with a "
        "server as teacher the mean log-ratio, an estimate of the reverse KL.",
        unit="nats per token",
        group="result",
        merged=TOKENS,
        better="lower",
        advice="It falls while the student learns. With a high value on responses and a low one on "
        "completions the student fails where its own mistakes lead it.",
    ),
    Metric(
        name="divergence/data",
        label="Divergence on completions",
        meaning="Mean divergence from the teacher at the tokens of the rows' completions.",
        unit="nats per token",
        group="result",
        merged=TOKENS,
        better="lower",
    ),
    Metric(
        name="reverse_kl",
        label="Reverse KL from the teacher",
        meaning="Mean KL(student || teacher) of the next-token distributions on held-out rows.",
        unit="nats per token",
        group="kl",
        merged=TOKENS,
        better="lower",
    ),
    Metric(
        name="forward_kl",
        label="Forward KL from the teacher",
        meaning="Mean KL(teacher || student) of the next-token distributions on held-out rows.",
        unit="nats per token",
        group="kl",
        merged=TOKENS,
        better="lower",
    ),
    Metric(
        name="agreement",
        label="Agreement with the teacher",
        meaning="Share of held-out positions where student and teacher have the same most likely "
        "token.",
        unit="share",
        group="result",
        merged=TOKENS,
        better="higher",
    ),
    Metric(
        name="loss/sft",
        label="Loss on completions",
        meaning="Negative log-likelihood of the rows' completions, which sft_coef adds.",
        unit="nats per token",
        group="result",
        merged=TOKENS,
        better="lower",
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

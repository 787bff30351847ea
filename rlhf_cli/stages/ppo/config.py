from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from rlhf_cli.config.schema import Ge, ModelPath
from rlhf_cli.config.values import format_value, unused_problems
from rlhf_cli.models.config import REFERENCE_CHOICES, ComparedModelConfig
from rlhf_cli.rewards.config import RewardsConfig
from rlhf_cli.stages.config import StageConfig, prompt_rows_problems
from rlhf_cli.stages.ppo.advantage_config import AdvantageConfig
from rlhf_cli.stages.ppo.kl_config import KLPenaltyConfig
from rlhf_cli.stages.ppo.policy_loss_config import PolicyLossConfig
from rlhf_cli.stages.ppo.ptx_config import PtxConfig
from rlhf_cli.stages.ppo.responses_config import ResponsesConfig
from rlhf_cli.stages.ppo.value_model_config import ValueModelConfig
from rlhf_cli.stages.rollouts.config import RolloutStageConfig, server_problems
from rlhf_cli.sweep.config import Objective


@dataclass(kw_only=True)
class PPOModelConfig(ComparedModelConfig):
    """The policy, and the reference that its KL penalty is computed from."""

    reference: Annotated[str, ModelPath("reference_revision", words=REFERENCE_CHOICES)] = "auto"
    """Reference model of the KL penalty: `adapter_off`, the same weights without the new adapter;
    `copy`, a frozen copy in memory (of a continued adapter, only the adapter); or a model folder,
    run folder or hub id. `auto` is `adapter_off` with a new adapter, else `copy`."""

    reference_choices: ClassVar[tuple[str, ...]] = ("auto", "copy", "adapter_off")


@dataclass(kw_only=True)
class PPOConfig(
    PtxConfig,
    ValueModelConfig,
    PolicyLossConfig,
    KLPenaltyConfig,
    AdvantageConfig,
    ResponsesConfig,
    RolloutStageConfig,
    StageConfig,
):
    """Proximal policy optimization: generate responses, score them, and raise their score.

    A step is a rollout of `train.batch_size` prompts with `samples_per_prompt` responses each, and
    `ppo_epochs` times `minibatches` optimizer steps.
    """

    default_lr: ClassVar[tuple[float, float]] = (3e-6, 1e-5)
    command: ClassVar[str] = "ppo"
    """The command that has these keys."""

    model: PPOModelConfig = field(default_factory=PPOModelConfig)
    reward: RewardsConfig = field(default_factory=RewardsConfig)

    ppo_epochs: Annotated[int, Ge(1)] = 4
    """Epochs over each rollout."""

    minibatches: Annotated[int, Ge(1)] = 1
    """Optimizer steps per epoch."""

    minibatch_shuffle: bool = False
    """Divide the responses of a rollout into other minibatches in each epoch after the first."""

    undivided: ClassVar[str] = (
        "ppo decodes each response with all its keys and values on one process, so a row that one "
        "device cannot hold cannot be generated either"
    )

    @property
    def default_objective(self) -> Objective:
        """Objective of sweeps: the score, since the loss does not measure quality."""
        return Objective("eval/score", "max")

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps per rollout."""
        return self.ppo_epochs * self.minibatches

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        found = super().problems() + self.reward.missing() + server_problems(self)
        return found + self.step_problems() + self._rollout_problems()

    def step_problems(self) -> list[str]:
        """Contradictions among the keys of a step, wherever its prompts and scores come from."""
        found = self._reference_problems() + self.kl_problems() + self.advantage_problems()
        found += self.policy_loss_problems() + self._sampling_problems()
        found += self.value_problems(self.value_start) + self.ptx_problems()
        return found + self._penalty_problems() + self._separate_reward_problems()

    def _reference_problems(self) -> list[str]:
        if self.model.reference in ("stored", "none"):
            return [
                f"model.reference: got {self.model.reference}; {self.command} computes the KL of "
                "responses that it generates during the run, so it needs a reference in memory. "
                "Try model.reference=auto"
            ]
        return self.model.reference_problems(self.adapter.kind)

    def _rollout_problems(self) -> list[str]:
        found = []
        if self.reuses_logprobs and self.compat == "trl":
            found.append(
                "rollout_logprobs: got reuse with compat=trl, which computes them again as TRL "
                "does. Try rollout_logprobs=recompute"
            )
        if self.reuses_logprobs and self.rollout.correction in ("token", "sequence"):
            found.append(
                f"rollout.correction: got {self.rollout.correction} with rollout_logprobs=reuse, "
                "whose ratio is that of policy and server already. "
                "Try rollout_logprobs=recompute, or rollout.correction=none"
            )
        elif self.reuses_logprobs and self.rollout.correction == "auto":
            found += self.rollout.unweighted_problems(
                "rollout_logprobs=reuse, which needs no importance weights. "
                "Try rollout_logprobs=recompute"
            )
        found += self.graph_problems(self.launch)
        responses = self.train.batch_size * self.samples_per_prompt
        if responses % self.minibatches:
            near = max(n for n in range(1, self.minibatches) if responses % n == 0)
            found.append(
                f"minibatches: got {self.minibatches}, which does not divide the {responses} "
                "responses of a step (train.batch_size times samples_per_prompt). "
                f"Try minibatches={near}"
            )
        return found + prompt_rows_problems(self.command, self.data, self.sampling.max_new_tokens)

    def _sampling_problems(self) -> list[str]:
        found, sampling = [], self.sampling
        if sampling.temperature == 0:
            found.append(
                "sampling.temperature: got 0.0, where all responses to a prompt are the same; need "
                "a number > 0. Try temperature=0.7"
            )
        cuts = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "min_new_tokens": 0}
        given = [name for name, default in cuts.items() if getattr(sampling, name) != default]
        if given and not self.allow_truncated_sampling:
            defaults = " ".join(f"sampling.{name}={cuts[name]:g}" for name in given)
            found.append(
                f"sampling.{', sampling.'.join(given)}: given, but the tokens that it excludes "
                f"have probability in the policy that is trained. Try {defaults}, or "
                "allow_truncated_sampling=true"
            )
        return found

    def _penalty_problems(self) -> list[str]:
        found, most = [], self.sampling.max_new_tokens
        if self.overlong_buffer > most:
            found.append(
                f"overlong_buffer: got {self.overlong_buffer}, more than "
                f"sampling.max_new_tokens={most}; need at most that. "
                f"Try overlong_buffer={max(1, most // 5)}"
            )
        used = {"overlong_penalty": bool(self.overlong_buffer)}
        found += unused_problems(self, used, "overlong_buffer")
        shuffled = {"minibatch_shuffle": self.ppo_epochs > 1 and self.minibatches > 1}
        return found + unused_problems(self, shuffled, "a run of several epochs and minibatches")

    def _separate_reward_problems(self) -> list[str]:
        """With `normalize_rewards=each`: what needs the sum of the terms, or changes it."""
        if self.normalize_rewards == "sum" or self.advantage != "grpo":
            return []
        found = []
        if len(self.reward.terms) < 2:
            found.append(
                "normalize_rewards: got each with fewer than two reward.terms; need several. "
                "Try normalize_rewards=sum"
            )
        if self.kl_coef and self.kl_in == "reward":
            found.append(
                "kl_in: got reward with normalize_rewards=each, where a reward per token belongs "
                "to none of the terms. Try kl_in=loss kl_estimator=k3, or kl_coef=0"
            )
        summed = {
            "missing_eos_penalty": (self.missing_eos_penalty, 0),
            "overlong_buffer": (self.overlong_buffer, 0),
            "whiten_rewards": (self.whiten_rewards, False),
            "reward.combine": (self.reward.combine, "sum"),
            "reward.baseline": (self.reward.baseline, 0),
            "reward.scale": (self.reward.scale, "none"),
            "reward.clip": (self.reward.clip, 0),
        }
        return found + [
            f"{name}: given with normalize_rewards=each, which reads the scores of each term and "
            f"not their sum. Try {name}={format_value(default)}"
            for name, (value, default) in summed.items()
            if value != default
        ]

    @property
    def value_start(self) -> str:
        """Reward model that a separate value model starts from."""
        return self.value_model or self.reward.model

    @property
    def value_start_revision(self) -> str:
        """Hub revision of `value_start`."""
        return self.value_model_revision if self.value_model else self.reward.revision

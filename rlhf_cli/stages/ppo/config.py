from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from rlhf_cli.config.schema import DataPath, Ge, Gt, Le, ModelPath, Unit, no_rows, unused_options
from rlhf_cli.models.config import REFERENCE_CHOICES, ComparedModelConfig
from rlhf_cli.rewards.config import RewardsConfig
from rlhf_cli.stages.config import StageConfig, prompt_rows_problems
from rlhf_cli.stages.rollouts.config import RolloutStageConfig
from rlhf_cli.sweep.config import Objective

GROUPED = ("grpo", "rloo")
"""Advantage estimators that compare responses to the same prompt."""


@dataclass(kw_only=True)
class PPOModelConfig(ComparedModelConfig):
    """The policy, and the reference that its KL penalty is computed from."""

    reference: Annotated[str, ModelPath("reference_revision", words=REFERENCE_CHOICES)] = "auto"
    """Reference model of the KL penalty: `adapter_off`, the same weights without the new adapter;
    `copy`, a frozen copy in memory (of a continued adapter, only the adapter); or a model folder,
    run folder or hub id. `auto` is `adapter_off` with a new adapter, else `copy`."""

    reference_choices: ClassVar[tuple[str, ...]] = ("auto", "copy", "adapter_off")


@dataclass(kw_only=True)
class PPOConfig(RolloutStageConfig, StageConfig):
    """Proximal policy optimization: generate responses, score them, and raise their score.

    A step is a rollout of `train.batch_size` prompts with `samples_per_prompt` responses each, and
    `ppo_epochs` times `minibatches` optimizer steps.
    """

    default_lr: ClassVar[tuple[float, float]] = (3e-6, 1e-5)

    model: PPOModelConfig = field(default_factory=PPOModelConfig)
    reward: RewardsConfig = field(default_factory=RewardsConfig)

    kl_coef: Annotated[float, Ge(0)] = 0.05
    """KL penalty coefficient β: subtracted from the reward per nat of KL to the reference."""

    kl_in: Literal["reward", "loss"] = "reward"
    """Where the KL penalty is applied: `reward` subtracts it from the reward of each token, as in
    PPO; `loss` adds it to the loss, as in GRPO."""

    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of a token's KL: `k1` is the log-ratio, `k2` half its square, `k3` unbiased and
    never negative."""

    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """`adaptive` changes `kl_coef` so that the KL approaches `kl_target` (arXiv:1909.08593)."""

    kl_target: Annotated[float, Gt(0), Unit("nats")] = 6.0
    """Target KL of a whole response, for `kl_controller=adaptive`."""

    kl_horizon: Annotated[int, Ge(1), Unit("responses")] = 10_000
    """Horizon of `kl_controller=adaptive`: larger changes `kl_coef` more slowly."""

    kl_limit: Annotated[float, Gt(0), Unit("nats")] = 100.0
    """Stop the run when the mean KL of a rollout's responses is above this."""

    early_stop_kl: Annotated[float, Ge(0), Unit("nats")] = 0.0
    """Skip a rollout's remaining updates when the approximate KL per token from the policy that
    sampled it is above 1.5 times this; 0 never does."""

    clip_range: Annotated[float, Gt(0)] = 0.2
    """Clip range ε of the policy ratio (arXiv:1707.06347)."""

    value: Literal["shared", "adapter", "model"] = "shared"
    """Value model: a head on the policy's hidden states, an adapter and a head of its own on the
    policy's base, or a separate model that starts from `value_model`."""

    value_model: Annotated[str, ModelPath("value_model_revision")] = ""
    """Reward model that `value=model` starts from; empty takes `reward.model`."""

    value_model_revision: str = ""
    """Branch, tag or commit of the hub id in `value_model`; empty takes its default branch."""

    value_clip_range: Annotated[float, Ge(0)] = 0.2
    """Clip range of the value loss: a value further than this from its old value is clipped."""

    value_warmup_steps: Annotated[int, Ge(0), Unit("rollouts")] = 0
    """Number of first steps in which only the value model is trained."""

    vf_coef: Annotated[float, Ge(0)] = 0.1
    """Coefficient of the value loss."""

    gamma: Annotated[float, Ge(0), Le(1)] = 1.0
    """Discount factor γ."""

    gae_lambda: Annotated[float, Ge(0), Le(1)] = 0.95
    """GAE λ: 0 uses one-step TD errors, 1 full returns (arXiv:1506.02438)."""

    ppo_epochs: Annotated[int, Ge(1)] = 4
    """Epochs over each rollout."""

    minibatches: Annotated[int, Ge(1)] = 1
    """Optimizer steps per epoch."""

    advantage: Literal["gae", "grpo", "rloo", "reinforce_baseline", "reinforce_pp"] = "gae"
    """Advantage estimator. `gae` trains a value model; the others have none: `grpo` and `rloo`
    compare a response with others to its prompt, `reinforce_baseline` with the whole rollout,
    `reinforce_pp` with none."""

    rollout_logprobs: Literal["recompute", "reuse"] = "recompute"
    """Source of the old log-probs: `recompute` computes them again as the updates do, so that the
    first ratio is 1; `reuse` keeps the sampler's, which saves that forward pass, and logs the
    mismatch."""

    missing_eos_penalty: Annotated[float, Ge(0)] = 0.0
    """Subtracted from the score of a response that did not end by itself."""

    whiten_rewards: bool = False
    """Divide rewards by their standard deviation over the rollout, without shifting their mean."""

    whiten_advantages: bool = True
    """With `gae` and `reinforce_pp`: normalize advantages to mean 0 and variance 1 over the
    rollout."""

    ptx_coef: Annotated[float, Ge(0)] = 0.0
    """PPO-ptx coefficient γ (arXiv:2203.02155): weight of the language-model loss on `ptx_data`."""

    ptx_data: Annotated[str, DataPath("ptx_revision")] = ""
    """Data of the PPO-ptx loss: text, chats or pairs of prompt and completion."""

    ptx_revision: str = ""
    """Branch, tag or commit of a hub id in `ptx_data`."""

    ptx_batch_size: Annotated[int, Ge(1), Unit("examples")] = 8
    """Examples of `ptx_data` per optimizer step."""

    allow_truncated_sampling: bool = False
    """Allow `top_k`, `top_p`, `min_p` and `min_new_tokens`, although the log-probs of the updates
    are those of the whole distribution."""

    compat: Literal["none", "trl"] = "none"
    """`trl` puts the score after the end token, as TRL 1.12 does; for comparisons."""

    undivided: ClassVar[str] = (
        "ppo decodes each response with all its keys and values on one process, so a row that one "
        "device cannot hold cannot be generated either"
    )

    @property
    def default_objective(self) -> Objective:
        """Objective of sweeps: the score, since the loss does not measure quality."""
        return Objective("eval/score", "max")

    @property
    def has_value_model(self) -> bool:
        """Whether a value model is trained."""
        return self.advantage == "gae"

    @property
    def reuses_logprobs(self) -> bool:
        """Whether the sampler's log-probs are the old log-probs."""
        return self.rollout_logprobs == "reuse"

    @property
    def whitens(self) -> bool:
        """Whether advantages are whitened."""
        return self.whiten_advantages and self.advantage in ("gae", "reinforce_pp")

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps per rollout."""
        return self.ppo_epochs * self.minibatches

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        found = super().problems() + self.reward.missing()
        return found + self.step_problems() + self._rollout_problems()

    def step_problems(self) -> list[str]:
        """Contradictions among the keys of a step, wherever its prompts and scores come from."""
        found = self._reference_problems() + self._kl_problems() + self._group_problems()
        return found + self._sampling_problems() + self._value_problems() + self._unread_problems()

    def _reference_problems(self) -> list[str]:
        if self.model.reference in ("stored", "none"):
            return [
                f"model.reference: got {self.model.reference}; ppo computes the KL of responses "
                "that it generates during the run, so it needs a reference in memory. "
                "Try model.reference=auto"
            ]
        return self.model.reference_problems(self.adapter.kind)

    def _kl_problems(self) -> list[str]:
        found = []
        if self.kl_controller == "adaptive" and not self.kl_coef:
            found.append(
                "kl_coef: got 0.0 with kl_controller=adaptive, which multiplies it, so that it "
                "stays 0; need a number > 0. Try kl_coef=0.2"
            )
        if self.kl_in == "loss" and self.kl_coef and self.kl_estimator == "k1":
            found.append(
                "kl_estimator: got k1 with kl_in=loss, where its gradient is 0 on average and "
                "regularizes nothing; need k2 or k3. Try kl_estimator=k3"
            )
        return found

    def _group_problems(self) -> list[str]:
        if self.advantage not in GROUPED or self.samples_per_prompt >= 2:
            return []
        return [
            f"samples_per_prompt: got {self.samples_per_prompt} with advantage={self.advantage}, "
            "which compares responses to one prompt; need 2 at least. Try samples_per_prompt=4"
        ]

    def _rollout_problems(self) -> list[str]:
        found = []
        if self.reuses_logprobs and self.compat == "trl":
            found.append(
                "rollout_logprobs: got reuse with compat=trl, which computes them again as TRL "
                "does. Try rollout_logprobs=recompute"
            )
        if self.sampling.cuda_graphs and self.launch.shard != "none":
            found.append(
                f"sampling.cuda_graphs: got true with launch.shard={self.launch.shard}, whose "
                "gathered weights lie elsewhere in memory at each rollout, where a captured graph "
                "would not find them. Try sampling.cuda_graphs=false"
            )
        responses = self.train.batch_size * self.samples_per_prompt
        if responses % self.minibatches:
            near = max(n for n in range(1, self.minibatches) if responses % n == 0)
            found.append(
                f"minibatches: got {self.minibatches}, which does not divide the {responses} "
                "responses of a step (train.batch_size times samples_per_prompt). "
                f"Try minibatches={near}"
            )
        return found + prompt_rows_problems("ppo", self.data, self.sampling.max_new_tokens)

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

    def _value_problems(self) -> list[str]:
        found = []
        if self.value == "model" and self.has_value_model and not self.value_start:
            found.append(
                "value_model: none given with value=model; need a reward model to start from. "
                "Try value_model=runs/reward"
            )
        if bool(self.ptx_coef) == no_rows(self.ptx_data):
            given, other = ("ptx_coef", "ptx_data") if self.ptx_coef else ("ptx_data", "ptx_coef")
            found.append(
                f"{given}: given without {other}; need both. "
                f"Try {'ptx_data=text.jsonl' if self.ptx_coef else 'ptx_coef=1'}"
            )
        return found

    @property
    def value_start(self) -> str:
        """Reward model that a separate value model starts from."""
        return self.value_model or self.reward.model

    @property
    def value_start_revision(self) -> str:
        """Hub revision of `value_start`."""
        return self.value_model_revision if self.value_model else self.reward.revision

    def _unread_problems(self) -> list[str]:
        """Options that are set but have no effect in this run."""
        value_model, adaptive = self.has_value_model, self.kl_controller == "adaptive"
        read = {
            "value": value_model,
            "value_model": value_model and self.value == "model",
            "value_clip_range": value_model,
            "value_warmup_steps": value_model,
            "vf_coef": value_model,
            "gamma": value_model,
            "gae_lambda": value_model,
            "kl_target": adaptive,
            "kl_horizon": adaptive,
        }
        found = []
        for name, default in unused_options(self, read).items():
            need = "kl_controller=adaptive" if name.startswith("kl_") else "advantage=gae"
            need = "value=model" if name == "value_model" and value_model else need
            found.append(f"{name}: given, but only {need} reads it. Try {name}={default}")
        return found

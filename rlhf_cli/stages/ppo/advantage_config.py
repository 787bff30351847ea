from dataclasses import dataclass
from typing import Annotated, Literal

from rlhf_cli.config.schema import Ge, Le, Unit
from rlhf_cli.config.values import unused_problems
from rlhf_cli.stages.rollouts.config import RolloutStageConfig

GROUPED = ("grpo", "rloo")
"""Advantage estimators that compare responses to the same prompt."""


@dataclass(kw_only=True)
class AdvantageConfig(RolloutStageConfig):
    """The advantages of a rollout's responses."""

    advantage: Literal["gae", "grpo", "rloo", "reinforce_baseline", "reinforce_pp"] = "gae"
    """Advantage estimator. `gae` trains a value model; the others have none: `grpo` and `rloo`
    compare a response with others to its prompt, `reinforce_baseline` with the whole rollout,
    `reinforce_pp` with none."""

    scale: Literal["std", "none", "batch"] = "std"
    """With `grpo`: what the difference from the group's mean is divided by: the group's standard
    deviation, nothing (Dr. GRPO, arXiv:2503.20783), or that of all scores (arXiv:2508.08221)."""

    normalize_rewards: Literal["sum", "each"] = "sum"
    """With `grpo` and several `reward.terms`: `each` computes the advantages of each term apart, in
    its own scale, then adds and whitens them (GDPO, arXiv:2601.05242)."""

    dynamic_sampling: Annotated[int, Ge(0), Unit("times")] = 0
    """Replace a prompt whose responses all have the same score by another one, at most this many
    times in a step (DAPO, arXiv:2503.14476); 0 never does."""

    gamma: Annotated[float, Ge(0), Le(1)] = 1.0
    """Discount factor γ."""

    gae_lambda: Annotated[float, Ge(0), Le(1)] = 0.95
    """GAE λ: 0 uses one-step TD errors, 1 full returns (arXiv:1506.02438)."""

    whiten_rewards: bool = False
    """Divide rewards by their standard deviation over the rollout, without shifting their mean."""

    whiten_advantages: bool = True
    """With `gae` and `reinforce_pp`: normalize advantages to mean 0 and variance 1 over the
    rollout."""

    @property
    def has_value_model(self) -> bool:
        """Whether a value model is trained."""
        return self.advantage == "gae"

    @property
    def whitens(self) -> bool:
        """Whether advantages are whitened."""
        return self.whiten_advantages and self.advantage in ("gae", "reinforce_pp")

    def advantage_problems(self) -> list[str]:
        """Contradictions among these keys, one line each."""
        used = dict.fromkeys(("gamma", "gae_lambda"), self.has_value_model)
        found = self._group_problems() + unused_problems(self, used, "advantage=gae")
        grpo = self.advantage == "grpo"
        found += unused_problems(self, {"normalize_rewards": grpo}, "advantage=grpo")
        if self.normalize_rewards == "each":
            return found + unused_problems(self, {"scale": False}, "normalize_rewards=sum")
        return found + unused_problems(self, {"scale": grpo}, "advantage=grpo")

    def _group_problems(self) -> list[str]:
        if self.dynamic_sampling and self.advantage not in GROUPED:
            return [
                f"dynamic_sampling: got {self.dynamic_sampling} with advantage={self.advantage}, "
                "which learns from equal scores too; need grpo or rloo. Try dynamic_sampling=0"
            ]
        if self.advantage not in GROUPED or self.samples_per_prompt >= 2:
            return []
        return [
            f"samples_per_prompt: got {self.samples_per_prompt} with advantage={self.advantage}, "
            "which compares responses to one prompt; need 2 at least. Try samples_per_prompt=4"
        ]

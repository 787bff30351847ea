from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from rlhf_cli.config.schema import Ge
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.stages.ppo.config import PPOConfig


@dataclass(kw_only=True)
class GRPOConfig(PPOConfig):
    """Group-relative policy optimization: PPO that compares several responses to each prompt.

    No value model is trained. It runs as `rlhf ppo` does with the same keys; the defaults are those
    of DeepSeekMath (arXiv:2402.03300, section 4.2): one update per rollout at temperature 1, and
    the KL in the loss with a coefficient of 0.04.
    """

    default_lr: ClassVar[tuple[float, float]] = (1e-6, 1e-5)
    command: ClassVar[str] = "grpo"

    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=1.0))

    samples_per_prompt: Annotated[int, Ge(1)] = 8
    """Responses per prompt of a step, which are compared with each other."""

    advantage: Literal["gae", "grpo", "rloo", "reinforce_baseline", "reinforce_pp"] = "grpo"
    """Advantage estimator: `grpo` and `rloo` compare a response with others to its prompt,
    `reinforce_baseline` with the whole rollout, `reinforce_pp` with none. `gae` needs the value
    model of `rlhf ppo`."""

    kl_coef: Annotated[float, Ge(0)] = 0.04
    """KL penalty coefficient β, per nat of KL to the reference (arXiv:2402.03300); 0 in DAPO."""

    kl_in: Literal["reward", "loss"] = "loss"
    """Where the KL penalty is applied: `loss` adds it to the loss, as in GRPO; `reward` subtracts
    it from the reward of each token, as in PPO."""

    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of a token's KL: `k1` is the log-ratio, `k2` half its square, `k3` unbiased and
    never negative."""

    ppo_epochs: Annotated[int, Ge(1)] = 1
    """Epochs over each rollout."""

    def step_problems(self) -> list[str]:
        """Contradictions among the keys of a step, wherever its prompts and scores come from."""
        if self.has_value_model:
            return [
                "advantage: got gae; grpo trains no value model, which rlhf ppo does. "
                "Try advantage=grpo"
            ]
        return super().step_problems()

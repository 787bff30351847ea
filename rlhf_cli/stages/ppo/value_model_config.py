from dataclasses import dataclass
from typing import Annotated, Literal

from rlhf_cli.config.schema import Ge, ModelPath, Unit
from rlhf_cli.config.values import unused_problems
from rlhf_cli.stages.ppo.advantage_config import AdvantageConfig


@dataclass(kw_only=True)
class ValueModelConfig(AdvantageConfig):
    """The value model of PPO, which `advantage=gae` trains."""

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

    value_lr: Annotated[float, Ge(0)] = 0.0
    """Peak learning rate of the value model's own parameters, with the warm-up and decay of
    `train.lr`; 0 takes `train.lr`."""

    vf_coef: Annotated[float, Ge(0)] = 0.1
    """Coefficient of the value loss."""

    def value_problems(self, start: str) -> list[str]:
        """Contradictions among these keys, one line each.

        Args:
            start: reward model that a separate value model starts from.
        """
        found = []
        if self.value == "model" and self.has_value_model and not start:
            found.append(
                "value_model: none given with value=model; need a reward model to start from. "
                "Try value_model=runs/reward"
            )
        names = ("value", "value_clip_range", "value_warmup_steps", "value_lr", "vf_coef")
        used = dict.fromkeys(names, self.has_value_model)
        found += unused_problems(self, used, "advantage=gae")
        separate = self.has_value_model and self.value == "model"
        need = "value=model" if self.has_value_model else "advantage=gae"
        return found + unused_problems(self, {"value_model": separate}, need)

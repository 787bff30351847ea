from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal

from rlhf_cli.config.schema import Ge
from rlhf_cli.config.values import format_value
from rlhf_cli.data.config import DataConfig
from rlhf_cli.launch.config import LaunchConfig
from rlhf_cli.rewards.config import RewardsConfig
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.server.config import RolloutConfig
from rlhf_cli.stages.config import prompt_rows_problems
from rlhf_cli.stages.rollouts.config import RolloutStageConfig


@dataclass(kw_only=True)
class OnlineConfig(RolloutStageConfig):
    """Options of online DPO, whose pairs are responses of the policy."""

    online: bool = False
    """Online DPO (OAIF, arXiv:2402.04792): in each step the policy writes `samples_per_prompt`
    responses to `train.batch_size` prompts, `reward` scores them, and the best and the worst
    response to a prompt are its pair."""

    samples_per_prompt: Annotated[int, Ge(1)] = 2
    """With `online`: responses per prompt of a step, of which the best and the worst are used."""

    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.9))
    reward: RewardsConfig = field(default_factory=RewardsConfig)

    missing_eos_penalty: Annotated[float, Ge(0)] = 0.0
    """With `online`: subtracted from the score of a response that did not end by itself."""

    template: Literal["auto", "always", "never"] = "auto"
    """How a row whose prompt and responses are text is formatted. `always` puts the prompt as the
    user's message and each response as the assistant's into the chat template, as for a row of
    messages. `never` concatenates them, and so does `auto`, which prints a line where the model has
    a chat template; with `online`, `auto` formats a prompt as the data that the model was trained
    on."""

    @property
    def generates(self) -> bool:
        """Whether the responses of the pairs are generated during the run."""
        return self.online

    @property
    def rows_per_prompt(self) -> int:
        """Responses to a prompt that are trained on."""
        return 2

    @property
    def rows_per_example(self) -> int:
        """Responses of these that stay in one micro-batch: both of a pair."""
        return 2 if self.online else 1

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps per rollout."""
        return 1

    def online_problems(self, data: DataConfig, launch: LaunchConfig) -> list[str]:
        """Contradictions of a run with `online=true`, one line each."""
        found = self.reward.missing()
        if self.samples_per_prompt < 2:
            found.append(
                f"samples_per_prompt: got {self.samples_per_prompt} with online=true, which "
                "compares responses to one prompt; need 2 at least. Try samples_per_prompt=2"
            )
        if self.sampling.temperature == 0:
            found.append(
                "sampling.temperature: got 0.0, where all responses to a prompt are the same; need "
                "a number > 0. Try temperature=0.9"
            )
        if launch.context_parallel > 1:
            found.append(
                f"launch.context_parallel: got {launch.context_parallel} with online=true, which "
                "decodes each response on one process. Try launch.context_parallel=1"
            )
        default = RolloutConfig()
        found += [
            f"rollout.{name}: given with online=true, whose loss has no importance weights. "
            f"Try rollout.{name}={format_value(getattr(default, name))}"
            for name in ("correction", "correction_cap", "correction_mask")
            if getattr(self.rollout, name) not in (getattr(default, name), "none")
        ]
        found += self.graph_problems(launch)
        return found + prompt_rows_problems("dpo", data, self.sampling.max_new_tokens)

    def offline_problems(self) -> list[str]:
        """Keys that are set, but have an effect with `online=true` only; one line each."""
        given, default = [], OnlineConfig()
        for name in (one.name for one in fields(OnlineConfig)):
            value, usual = getattr(self, name), getattr(default, name)
            if is_dataclass(value):
                given += _given_keys(name, value, usual)
            elif name not in ("online", "template") and value != usual:
                given.append(name)
        return [
            f"{name}: given with online=false, where responses come from the rows. Try online=true"
            for name in given
        ]


def _given_keys(group: str, cfg: Any, default: Any) -> list[str]:
    """Full names of the keys of a group that differ from their defaults."""
    return [
        f"{group}.{one.name}"
        for one in fields(cfg)
        if getattr(cfg, one.name) != getattr(default, one.name)
    ]

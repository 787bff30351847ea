from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

from rlhf_cli.config.schema import Ge, Unit
from rlhf_cli.data.config import DataConfig
from rlhf_cli.launch.config import LaunchConfig
from rlhf_cli.models.config import AdapterConfig, ModelConfig
from rlhf_cli.rewards.config import RewardsConfig
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.server.config import RolloutConfig, sampling_problems
from rlhf_cli.train.config import LogConfig, TrainConfig


class RolloutSettings(Protocol):
    """What the shared parts of stages that generate responses read of a configuration."""

    @property
    def model(self) -> ModelConfig:
        """The policy."""

    @property
    def adapter(self) -> AdapterConfig:
        """The adapter that is trained, if any."""

    @property
    def data(self) -> DataConfig:
        """The prompts."""

    @property
    def train(self) -> TrainConfig:
        """Prompts per step and number of steps."""

    @property
    def launch(self) -> LaunchConfig:
        """The processes."""

    @property
    def log(self) -> LogConfig:
        """What is logged."""

    @property
    def sampling(self) -> SamplingConfig:
        """How tokens are sampled."""

    @property
    def rollout(self) -> RolloutConfig:
        """The servers that generate."""

    @property
    def template(self) -> str:
        """Whether a text prompt becomes a user message."""

    @property
    def seed(self) -> int:
        """Seed of the prompts' order."""

    @property
    def samples_per_prompt(self) -> int:
        """Responses per prompt of a step."""

    @property
    def max_num_seqs(self) -> int:
        """Responses decoded at once; 0 chooses."""

    @property
    def sample_steps(self) -> int:
        """Steps between two logs of responses."""

    @property
    def device_memory(self) -> str:
        """Memory to plan for."""


class RewardedSettings(RolloutSettings, Protocol):
    """The same of stages whose responses are scored."""

    @property
    def reward(self) -> RewardsConfig:
        """What scores the responses."""


@dataclass(kw_only=True)
class RolloutStageConfig:
    """Options of the stages that generate responses to prompts."""

    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.7))
    rollout: RolloutConfig = field(default_factory=RolloutConfig)

    template: Literal["auto", "always", "never"] = "auto"
    """Whether a text prompt becomes a user message in the chat template. `auto`: as in the data
    that the model was trained on."""

    samples_per_prompt: Annotated[int, Ge(1)] = 1
    """Responses per prompt of a step."""

    max_num_seqs: Annotated[int, Ge(0), Unit("responses")] = 0
    """Responses decoded at once by a process; the KV cache has a slot as long as the longest
    prompt and response for each. Has no effect on responses but by rounding. 0 takes 64, or fewer
    where the cache does not fit the memory."""

    sample_steps: Annotated[int, Ge(0), Unit("rollouts")] = 10
    """Log some responses with their scores, also to `samples.jsonl`, every this many steps; 0 never
    does."""

    @property
    def generates(self) -> bool:
        """Whether the stage generates responses: always."""
        return True

    @property
    def rows_per_prompt(self) -> int:
        """Responses to a prompt that are trained on: all."""
        return self.samples_per_prompt

    @property
    def rows_per_example(self) -> int:
        """Responses of these that stay in one micro-batch."""
        return 1

    def graph_problems(self, launch: LaunchConfig) -> list[str]:
        """The line for CUDA graphs of weights that move in memory."""
        if not self.sampling.cuda_graphs or launch.shard == "none":
            return []
        return [
            f"sampling.cuda_graphs: got true with launch.shard={launch.shard}, whose gathered "
            "weights lie elsewhere in memory at each rollout, where a captured graph would not "
            "find them. Try sampling.cuda_graphs=false"
        ]


def server_problems(cfg: RolloutSettings) -> list[str]:
    """Keys that do not go with a server, one line each.

    Args:
        cfg: configuration of a stage that generates responses.
    """
    if not cfg.rollout.is_used:
        return []
    found = sampling_problems(cfg.sampling)
    if cfg.max_num_seqs:
        found.append(
            f"max_num_seqs: got {cfg.max_num_seqs} with a server, which decides itself how many "
            "responses it decodes at once. Try rollout.concurrency"
        )
    if cfg.rollout.sync == "adapter" and cfg.adapter.kind == "none":
        found.append(
            "rollout.sync: got adapter with adapter=none; need an adapter that is trained. "
            "Try rollout.sync=weights"
        )
    return found

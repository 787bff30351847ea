from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from rlhf_cli.config.schema import OutputPath, Seed, no_rows
from rlhf_cli.data.config import DataConfig
from rlhf_cli.launch.config import LaunchConfig
from rlhf_cli.models.config import LoadConfig, TrainedModelConfig
from rlhf_cli.sweep.config import Objective, SweepConfig
from rlhf_cli.train.config import LogConfig, TrainConfig


def judged_rows_problems(stage: str, data: DataConfig, formats: tuple[str, ...]) -> list[str]:
    """What does not go with rows that are judged as wholes, one line each."""
    found = []
    if data.format not in ("auto", *formats):
        needed = ", ".join(("auto", *formats))
        found.append(
            f"data.format: got {data.format}; {stage} needs one of {needed}. Try data.format=auto"
        )
    if data.packing:
        found.append(
            f"data.packing: got true; {stage} compares whole responses, whose rows are kept flat "
            "without it. Try data.packing=false"
        )
    if data.train_on != "response":
        found.append(
            f"data.train_on: got {data.train_on}; {stage} judges the response, whatever stands "
            "before it. Try data.train_on=response"
        )
    return found


PROMPT_FORMATS = ("auto", "prompt", "prompt_completion", "chat")


def prompt_rows_problems(stage: str, data: DataConfig, response: int) -> list[str]:
    """What does not go with rows that are prompts alone, one line each.

    Args:
        stage: writes the responses.
        data: of the prompts.
        response: `sampling.max_new_tokens`, for which a row leaves room.
    """
    found = []
    if response >= data.max_length:
        found.append(
            f"data.max_length: got {data.max_length}, which leaves no token for the prompt beside "
            f"sampling.max_new_tokens={response}. Try data.max_length={2 * response}, or "
            f"sampling.max_new_tokens={data.max_length // 2}"
        )
    if data.format not in PROMPT_FORMATS:
        found.append(
            f"data.format: got {data.format}; {stage} takes prompts, so it needs one of "
            f"{', '.join(PROMPT_FORMATS)}. Try data.format=auto"
        )
    if data.packing or data.train_on != "response":
        key, value = ("packing", "false") if data.packing else ("train_on", "response")
        found.append(
            f"data.{key}: given, but {stage} reads prompts alone and trains on what it writes. "
            f"Try data.{key}={value}"
        )
    return found


@dataclass(kw_only=True)
class StageConfig(LoadConfig):
    """What every training stage has."""

    model: TrainedModelConfig = field(default_factory=TrainedModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    log: LogConfig = field(default_factory=LogConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)

    seed: Seed = 0
    """Seed of weights, order and noise."""

    output_dir: Annotated[str, OutputPath()] = ""
    """Run folder; empty makes `runs/<stage>-<time>-<id>`."""

    resume: str = "auto"
    """`auto` continues an unfinished run in `output_dir`, `never` refuses to; or the path of a
    checkpoint to continue from."""

    balances_experts: ClassVar[bool] = False
    """Whether the balancing loss of a mixture of experts is a part of the loss."""

    default_lr: ClassVar[tuple[float, float]] = (2e-5, 2e-4)
    """What `train.lr=auto` is where all weights are trained, and where an adapter is."""

    @property
    def usual_objective(self) -> Objective:
        """What runs of the stage are compared by in a sweep, where nothing else is said."""
        return Objective("eval/loss", "min")

    @property
    def objective(self) -> Objective:
        """What runs are compared by in a sweep."""
        return self.sweep.objective(self.usual_objective)

    @property
    def as_messages(self) -> bool:
        """Whether text prompts and responses of rows become turns of the chat template."""
        return False

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        found = super().problems()
        if no_rows(self.data.path):
            found.append(
                "data.path: none given; need a file or folder of rows. "
                "Try data=rows.jsonl, or data=tiny (shipped rows)"
            )
        if not self.data.holds_out and (self.train.early_stop or self.train.result == "best"):
            found.append(
                "data.eval: got none, but train.early_stop and train.result=best go by held-out "
                "rows. Try data.eval=0.05"
            )
        if 0 < self.train.max_steps < self.train.warmup_steps:
            found.append(
                f"train.warmup_steps: got {self.train.warmup_steps}, more than train.max_steps="
                f"{self.train.max_steps}; need at most that. "
                f"Try train.warmup_steps={self.train.max_steps // 10}"
            )
        return found


@dataclass(kw_only=True)
class ResponseRowsConfig(StageConfig):
    """What stages have that learn from rows of prompts with responses."""

    template: Literal["auto", "always", "never"] = "auto"
    """What becomes of a row whose prompt and responses are text. `always` makes the prompt the
    user's message and each response the assistant's, in the chat template, as in a row of messages.
    `never` joins them as they stand, and so does `auto`, which says so where the model has a chat
    template."""

    @property
    def as_messages(self) -> bool:
        """Whether text prompts and responses of rows become turns of the chat template."""
        return self.template == "always"

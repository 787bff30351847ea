from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from rlhf_cli.config.schema import Ge, OutputPath, RuntimeOnly, Seed, Unit, no_rows
from rlhf_cli.config.sizes import size_problems
from rlhf_cli.data.config import DataConfig
from rlhf_cli.launch.config import LaunchConfig
from rlhf_cli.models.config import LoadConfig, TrainedModelConfig
from rlhf_cli.sweep.config import Objective, SweepConfig
from rlhf_cli.train.config import LogConfig, TrainConfig


def response_rows_problems(stage: str, data: DataConfig, formats: tuple[str, ...]) -> list[str]:
    """Settings that a stage which compares whole responses does not support, one line each."""
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
            f"data.train_on: got {data.train_on}; {stage} scores only the response, not "
            "what precedes it. Try data.train_on=response"
        )
    return found


PROMPT_FORMATS = ("auto", "prompt", "prompt_completion", "chat")


def prompt_rows_problems(stage: str, data: DataConfig, response: int) -> list[str]:
    """Settings that a stage which reads prompts alone does not support, one line each.

    Args:
        stage: name of the stage, which generates the responses.
        data: configuration of the prompts.
        response: `sampling.max_new_tokens`; a row leaves room for this many.
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
    """Options of every training stage."""

    model: TrainedModelConfig = field(default_factory=TrainedModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    log: LogConfig = field(default_factory=LogConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)

    seed: Seed = 0
    """Seed of the initial weights, the order of rows, dropout and sampling."""

    output_dir: Annotated[str, OutputPath()] = ""
    """Run folder; empty makes `runs/<stage>-<time>-<id>`."""

    resume: str = "auto"
    """`auto` continues an unfinished run in `output_dir`, `never` refuses to; or the path of a
    checkpoint to continue from."""

    device_memory: Annotated[str, RuntimeOnly()] = ""
    """Memory to plan for, as in `24GB`, instead of that of the device found: for a device that is
    not here, or to leave room. It bounds the choice of `train.micro_batch_tokens`, and a run that
    needs more is refused."""

    device_flops: Annotated[float, Ge(0), RuntimeOnly(), Unit("FLOP/s")] = 0.0
    """Rate at which the device computes, from which `--dry-run` estimates the time, as in 400e12; 0
    measures a CPU, or takes a share of a GPU's datasheet."""

    balances_experts: ClassVar[bool] = False
    """Whether the load-balancing loss of a mixture of experts is added to the loss."""

    undivided: ClassVar[str] = ""
    """Why the stage's rows cannot be divided among processes; empty where they can."""

    default_lr: ClassVar[tuple[float, float]] = (2e-5, 2e-4)
    """Values of `train.lr=auto`: for full training, and for an adapter."""

    @property
    def default_objective(self) -> Objective:
        """The metric that ranks the runs of a sweep unless `sweep.metric` is set."""
        return Objective("eval/loss", "min")

    @property
    def objective(self) -> Objective:
        """The metric that ranks the runs of a sweep."""
        return self.sweep.objective(self.default_objective)

    @property
    def generates(self) -> bool:
        """Whether the stage reads prompts alone, and generates the responses that it trains on."""
        return False

    @property
    def as_messages(self) -> bool:
        """Whether prompts and responses that are text are put into the chat template."""
        return False

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        found = super().problems() + size_problems("device_memory", self.device_memory)
        found += self._context_problems()
        if no_rows(self.data.path):
            found.append(
                "data.path: none given; need a file or folder of rows. "
                "Try data=rows.jsonl, or data=tiny (shipped rows)"
            )
        if not self.data.holds_out and (
            self.train.early_stop_patience or self.train.result == "best"
        ):
            found.append(
                "data.eval: got none, but train.early_stop_patience and train.result=best need "
                "held-out rows. Try data.eval=0.05"
            )
        if 0 < self.train.max_steps < self.train.warmup_steps:
            found.append(
                f"train.warmup_steps: got {self.train.warmup_steps}, more than train.max_steps="
                f"{self.train.max_steps}; need at most that. "
                f"Try train.warmup_steps={self.train.max_steps // 10}"
            )
        return found + self._not_on_shards()

    def _not_on_shards(self) -> list[str]:
        """Settings that do not go with shards, or with shards on the host; one line each."""
        found = []
        if self.train.compile and self.launch.shard != "none":
            found.append(
                f"train.compile: got true with launch.shard={self.launch.shard}, and compiled "
                "layers have not been shown to be exact on gathered weights. "
                "Try train.compile=false"
            )
        if self.launch.shard != "none" and self.quant.kind == "int8":
            found.append(
                f"quant.kind: got int8 with launch.shard={self.launch.shard}; each process would "
                "hold all 8-bit weights. Try quant.kind=nf4"
            )
        if self.launch.offload != "none" and self.train.optimizer.startswith("paged_"):
            plain = self.train.optimizer.removeprefix("paged_")
            found.append(
                f"train.optimizer: got {self.train.optimizer} with launch.offload="
                f"{self.launch.offload}, which keeps all moments on the host. "
                f"Try train.optimizer={plain}"
            )
        return found

    def _context_problems(self) -> list[str]:
        """Settings with which the tokens of a row cannot be divided among processes."""
        size, attention = self.launch.context_parallel, self.model.attention
        if size == 1:
            return []
        if self.undivided:
            return [
                f"launch.context_parallel: got {size}; {self.undivided}. "
                "Try launch.context_parallel=1 and train.gradient_checkpointing=true; --dry-run "
                "shows the memory of each phase"
            ]
        if attention not in ("auto", "per_row"):
            return [
                f"model.attention: got {attention} with launch.context_parallel={size}, which "
                "divides flat rows and their heads; need auto or per_row. Try model.attention=auto"
            ]
        return []


@dataclass(kw_only=True)
class ResponseRowsConfig(StageConfig):
    """Options of the stages that learn from rows of prompts with responses."""

    template: Literal["auto", "always", "never"] = "auto"
    """How a row whose prompt and responses are text is formatted. `always` puts the prompt as the
    user's message and each response as the assistant's into the chat template, as for a row of
    messages. `never` concatenates them, and so does `auto`, which prints a line where the model has
    a chat template."""

    @property
    def as_messages(self) -> bool:
        """Whether prompts and responses that are text are put into the chat template."""
        return self.template == "always"

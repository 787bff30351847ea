from dataclasses import dataclass, field
from re import fullmatch
from typing import Annotated, Literal

from rlhf_cli.commands.served.config import served_problems
from rlhf_cli.config.schema import DataPath, Ge, OutputPath, RuntimeOnly, Unit, no_rows
from rlhf_cli.config.sizes import size_problems
from rlhf_cli.data.config import DataConfig
from rlhf_cli.models.config import ModelConfig, QuantConfig
from rlhf_cli.rewards.config import RewardsConfig
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.server.config import ServerConfig


@dataclass(kw_only=True)
class GenerateConfig:
    """Write responses to prompts from the command line or a file."""

    model: ModelConfig = field(default_factory=ModelConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.7))
    rollout: ServerConfig = field(default_factory=ServerConfig)
    reward: RewardsConfig = field(default_factory=RewardsConfig)

    prompt: str | list[str] = ""
    """One prompt, or a list of prompts."""

    prompts: Annotated[str, DataPath()] = ""
    """File of prompts (`.jsonl` with a `prompt` or `messages` column, or `.txt`, one a line)."""

    template: Literal["auto", "always", "never"] = "auto"
    """Whether a text prompt becomes a user message in the chat template. `auto` does as the rows
    that a run was trained on; for other models it uses the template if the tokenizer has one."""

    system: str = ""
    """System message before every prompt; prompts must be messages or become messages."""

    output: Annotated[str, OutputPath()] = ""
    """File (`.jsonl`) for the rows; empty prints them. Rows are `{prompt, response}`, or with
    `reward.*` as `keep` describes."""

    samples_per_prompt: Annotated[int, Ge(1)] = 1
    """Responses per prompt."""

    keep: Literal["all", "best"] = "all"
    """Which responses scored by `reward.*` are written: `best` writes the best of each prompt, as
    `{prompt, completion, best_score}` for `rlhf sft`; `all` writes a ranking per prompt, as
    `{prompt, responses, scores}` for `rlhf reward`."""

    batch_size: Annotated[int, Ge(1)] = 16
    """Responses decoded at once."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute dtype; `auto` is bf16 if the hardware supports it."""

    device_memory: Annotated[str, RuntimeOnly()] = ""
    """Memory to plan for, as in `24GB`, instead of that of the device found: for a device that is
    not here, or to leave room. Models that need more are refused."""

    device_flops: Annotated[float, Ge(0), RuntimeOnly(), Unit("FLOP/s")] = 0.0
    """Rate at which the device computes, from which `--dry-run` estimates the time, as in 400e12; 0
    measures a CPU, or takes a share of a GPU's datasheet."""

    def problems(self) -> list[str]:
        """Contradictions between options, one line each."""
        found = self.model.missing() + size_problems("device_memory", self.device_memory)
        if self.prompt and not no_rows(self.prompts):
            found.append(f"prompt: given beside prompts={self.prompts}; need one of the two")
        if not any(self.prompt) and no_rows(self.prompts):
            found.append(
                'prompt: none given; need a prompt or a file of prompts. Try prompt="Hello, you", '
                "or prompts=FILE"
            )
        if self.system and self.template == "never":
            found.append(
                "system: given with template=never, with which a prompt is text and no chat. "
                "Try template=always"
            )
        return [
            *found,
            *self._sample_problems(),
            *self._score_problems(),
            *served_problems(self),
        ]

    @property
    def computes(self) -> bool:
        """Whether a model gives scores in this process."""
        return any(term.model or term.classifier for term in self.reward.all_terms)

    def _sample_problems(self) -> list[str]:
        count = self.samples_per_prompt
        if count == 1 and (self.keep == "best" or self.reward.is_given):
            return [
                "samples_per_prompt: got 1, and the responses to a prompt are to be compared; need "
                "2 or more. Try samples_per_prompt=8"
            ]
        if count > 1 and self.sampling.temperature == 0:
            return [
                f"samples_per_prompt: got {count} with sampling.temperature=0, at which all of "
                "them are the same; need a temperature > 0. Try temperature=1"
            ]
        return []

    def _score_problems(self) -> list[str]:
        if self.keep == "best" and not self.reward.is_given:
            return [
                "keep: got best, and nothing scores the responses; need reward.model, "
                "reward.classifier, reward.function, reward.url, a rule, or several in "
                "reward.terms. Try reward.model=runs/reward"
            ]
        if self.reward != RewardsConfig() and not self.reward.is_given:
            return self.reward.missing()
        if self.reward.scale == "running":
            return [
                "reward.scale: got running, by which later scores are on another scale than "
                "earlier ones; generate writes all of them to one file. Try reward.scale=none"
            ]
        return []


@dataclass(kw_only=True)
class MergeConfig:
    """Write an adapter run as one plain model, and check that its outputs are the same."""

    model: ModelConfig = field(default_factory=ModelConfig)

    output_dir: Annotated[str, OutputPath()] = ""
    """Folder of the merged model; new or empty."""

    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Dtype of the merged weights; the adapter is always added in fp32. `auto` is the dtype of the
    base, or fp32 if rounding to it loses more than 5 % of what the adapter changes."""

    push_to_hub: str = ""
    """Hub id `org/name` to upload the merged model to; a new repository is private."""

    def problems(self) -> list[str]:
        """Contradictions between options, one line each."""
        found = self.model.missing()
        if not self.output_dir:
            found.append("output_dir: none given; need a new folder. Try output_dir=runs/merged")
        if self.push_to_hub and not fullmatch(r"[\w.-]+/[\w.-]+", self.push_to_hub):
            found.append(
                f"push_to_hub: got {self.push_to_hub}; need a hub id with its owner. "
                "Try push_to_hub=me/my-model"
            )
        return found


@dataclass(kw_only=True)
class RowsConfig:
    """Rows of a file, where no stage reads them."""

    data: DataConfig = field(default_factory=DataConfig)

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        return []

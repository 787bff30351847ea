from dataclasses import dataclass, field
from re import fullmatch
from typing import Annotated, Literal

from rlhf_cli.config.schema import DataPath, Ge, OutputPath, no_rows
from rlhf_cli.models.config import ModelConfig, QuantConfig
from rlhf_cli.rewards.config import RewardsConfig
from rlhf_cli.rollout.config import SamplingConfig


@dataclass(kw_only=True)
class GenerateConfig:
    """Write responses to prompts from the command line or a file."""

    model: ModelConfig = field(default_factory=ModelConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.7))
    reward: RewardsConfig = field(default_factory=RewardsConfig)

    prompt: str | list[str] = ""
    """One prompt or a list."""

    prompts: Annotated[str, DataPath()] = ""
    """File of prompts (`.jsonl` with a `prompt` or `messages` column, or `.txt`, one a line)."""

    template: Literal["auto", "always", "never"] = "auto"
    """Whether a text prompt becomes a user's message in the chat template. `auto` follows the rows
    that a run was trained on, and elsewhere takes the template where the tokenizer has one."""

    system: str = ""
    """System message in front of every prompt; needs prompts that are messages or become them."""

    output: Annotated[str, OutputPath()] = ""
    """Write the rows to this `.jsonl` file; empty prints them. They are `{prompt, response}`, or
    with `reward.*` what `keep` says."""

    samples_per_prompt: Annotated[int, Ge(1)] = 1
    """Responses to each prompt."""

    keep: Literal["all", "best"] = "all"
    """Of the responses that `reward.*` scores: `best` writes the best to each prompt, as
    `{prompt, completion, best_score}` for `rlhf sft`; `all` writes a ranking for each, as
    `{prompt, responses, scores}` for `rlhf reward`."""

    batch_size: Annotated[int, Ge(1)] = 16
    """Responses decoded at once."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute type; `auto` is bf16 where the hardware has it."""

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        found = self.model.missing()
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
        return found + self._sample_problems() + self._score_problems()

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
    """Write an adapter run as one plain model, and show that it says the same."""

    model: ModelConfig = field(default_factory=ModelConfig)

    output_dir: Annotated[str, OutputPath()] = ""
    """Folder of the merged model; new or empty."""

    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Type of its weights; the adapter is added in fp32 in any case. `auto` is the base's own type,
    or fp32 where rounding to that costs more than 5 % of what the adapter changes."""

    push_to_hub: str = ""
    """Hub id `org/name` to upload the merged model to; a repository that is made for it is
    private."""

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        found = self.model.missing()
        if not self.output_dir:
            found.append("output_dir: none given; need a new folder. Try output_dir=runs/merged")
        if self.push_to_hub and not fullmatch(r"[\w.-]+/[\w.-]+", self.push_to_hub):
            found.append(
                f"push_to_hub: got {self.push_to_hub}; need a hub id with its owner. "
                "Try push_to_hub=me/my-model"
            )
        return found

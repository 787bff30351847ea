from dataclasses import dataclass, field
from typing import Annotated, Literal

from rlhf_cli.config.schema import AtLeast, DataPath, OutputPath, no_rows
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.rollout.config import SamplingConfig


@dataclass(kw_only=True)
class GenerateConfig:
    """Write responses to prompts from the command line or a file."""

    model: ModelConfig = field(default_factory=ModelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    prompt: str | list[str] = ""
    """One prompt or a list."""

    prompts: Annotated[str, DataPath()] = ""
    """File of prompts (`.jsonl` with a `prompt` or `messages` column, or `.txt`, one a line)."""

    template: Literal["auto", "always", "never"] = "auto"
    """Whether a text prompt becomes a user's message in the chat template. `auto` follows the rows
    that a run was trained on, and elsewhere takes the template where the tokenizer has one."""

    output: Annotated[str, OutputPath()] = ""
    """Write `{prompt, response}` rows to this `.jsonl` file; empty prints them."""

    batch_size: Annotated[int, AtLeast(1)] = 16
    """Prompts decoded at once."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute type; `auto` is bf16 where the hardware has it."""

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        found = self.model.missing()
        if self.prompt and not no_rows(self.prompts):
            found.append(f"prompt: given beside prompts={self.prompts}; need one of the two")
        if not self.prompt and no_rows(self.prompts):
            found.append(
                'prompt: none given; need a prompt or a file of prompts. Try prompt="Hello, you", '
                "or prompts=FILE"
            )
        return found

from dataclasses import dataclass, field
from typing import Annotated, Literal

from rlhf_cli.config.schema import ModelPath, OutputPath
from rlhf_cli.models.config import ModelConfig, QuantConfig
from rlhf_cli.rollout.config import SamplingConfig

MAX_NEW_TOKENS = 512
"""Default length of an answer; lowered to half of the model's positions where it has fewer."""


@dataclass(kw_only=True)
class ChatConfig:
    """Talk to a model in the terminal, or to several side by side, and rate their answers.

    Ratings are appended to files that bco, dpo and reward read as they are. `/help` in the chat
    lists its commands. Where standard input is no terminal, each line of it is a message.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    sampling: SamplingConfig = field(
        default_factory=lambda: SamplingConfig(temperature=0.7, max_new_tokens=MAX_NEW_TOKENS)
    )

    beside: Annotated[list[Annotated[str, ModelPath()]], ModelPath()] = field(default_factory=list)
    """Further models; or as arguments after the first: `rlhf chat runs/sft runs/dpo`."""

    system: str = ""
    """System message at the beginning of the chat."""

    template: Literal["auto", "always", "never"] = "auto"
    """Whether messages are rendered by the chat template; without it the model continues the text.
    `auto` does as the rows that a run was trained on; for other models it uses the template if the
    tokenizer has one."""

    blind: bool = False
    """Hide the names of several models and shuffle their order, until you say which is better."""

    shared_history: bool = False
    """After `/better` all models continue from the better answer, so that the next comparison has
    one prompt; otherwise each model keeps its own answers."""

    output: Annotated[str, OutputPath()] = "feedback.jsonl"
    """Ratings: `feedback.jsonl` stands for `feedback.labels.jsonl` (prompt, completion, label; for
    bco) and `feedback.pairs.jsonl` (prompt, chosen, rejected; for dpo and reward). Rows are
    appended; a file is created with its first row."""

    log: Annotated[str, OutputPath()] = ""
    """File (`.jsonl`) to which every answer is appended with its prompt; empty keeps no log."""

    history: Annotated[str, OutputPath()] = "auto"
    """File of what you typed, for the arrow keys: `auto` is `chat_history` in the cache folder,
    `none` keeps none."""

    rater: str = ""
    """Your name in the rows of ratings; empty takes the user name."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute dtype; `auto` is bf16 if the hardware supports it."""

    @property
    def models(self) -> list[str]:
        """Paths of all models, in the order given."""
        return [self.model.path, *self.beside]

    def problems(self) -> list[str]:
        """Contradictions between options, one line each."""
        found = self.model.missing() + self._repeated()
        if self.beside:
            found += self.model.settings_of_one_model()
        if self.system and self.template == "never":
            found.append(
                "system: given with template=never, with which the model continues text and reads "
                "no messages. Try template=always"
            )
        if not self.beside:
            found += [
                f"{name}: got true with one model; need several. Try rlhf chat runs/sft runs/dpo "
                f"{name}=true"
                for name in ("blind", "shared_history")
                if getattr(self, name)
            ]
        if not self.output.endswith(".jsonl"):
            found.append(
                f"output: got {self.output or 'nothing'}; need a name that ends in .jsonl. "
                "Try output=feedback.jsonl"
            )
        return found

    def _repeated(self) -> list[str]:
        twice = [path for i, path in enumerate(self.models) if path in self.models[:i]]
        return [f"beside: got {path} twice; need each model once" for path in twice]

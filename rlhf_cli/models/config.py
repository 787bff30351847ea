from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from rlhf_cli.config.schema import AtLeast, FilePath, ModelPath
from rlhf_cli.resources import SHIPPED

MIN_VOCAB_SIZE = 256 + 5
"""Of a trained tokenizer: every byte, and the tokens of ends, padding and chat roles."""


@dataclass(kw_only=True)
class ModelConfig:
    """Which model, which tokenizer, and how its weights are held."""

    path: Annotated[str, ModelPath()] = ""
    """Model folder, run folder, hub id, or `tiny` (shipped, random weights)."""

    revision: str = ""
    """Branch, tag or commit of a hub id; empty takes its default branch."""

    init: Literal["auto", "pretrained", "scratch"] = "auto"
    """`pretrained` needs weights at `path`, `scratch` draws random ones from its config; `auto` is
    `scratch` for `tiny` and `pretrained` for everything else."""

    architecture: dict[str, Any] = field(default_factory=dict)
    """With `init=scratch` and no `path`: a transformers config as keys, `model_type` first. Empty
    takes an 8 M parameter Llama."""

    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of the weights in the result folder; `auto` is the type they were computed in."""

    attention: Literal["auto", "per_row", "sdpa", "eager"] = "auto"
    """`per_row` keeps flat rows apart without padding; `sdpa` and `eager` pad. `auto` takes
    `per_row` where the load probe finds it exact, else `sdpa`."""

    tokenizer: Annotated[str, ModelPath()] = ""
    """Tokenizer folder or hub id; empty takes the one at `path`."""

    tokenizer_vocab_size: Annotated[int, AtLeast(0)] = 0
    """Train a byte-level BPE of this many tokens on the training text; needs `init=scratch` and at
    least 261. 0 trains none, save that `init=scratch` without any tokenizer takes 8192."""

    chat_template: Annotated[str, FilePath()] = ""
    """Jinja file that replaces the tokenizer's chat template."""

    trust_remote_code: bool = False
    """Run Python code that ships with a hub model."""

    @property
    def from_scratch(self) -> bool:
        """Whether the weights are drawn at random."""
        return self.init == "scratch" or (self.init == "auto" and self.path == SHIPPED)

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        found = []
        if self.architecture and self.path:
            found.append(
                f"model.architecture: given beside model.path={self.path}, which has its own; "
                "need one of the two"
            )
        elif self.architecture and self.init != "scratch":
            found.append(
                f"model.architecture: given with model.init={self.init}; need random weights. "
                "Try model.init=scratch"
            )
        if self.architecture and not isinstance(self.architecture.get("model_type"), str):
            found.append(
                "model.architecture: got no model_type. Try model.architecture.model_type=llama"
            )
        if 0 < self.tokenizer_vocab_size < MIN_VOCAB_SIZE:
            found.append(
                f"model.tokenizer_vocab_size: got {self.tokenizer_vocab_size}; need 0, or at least "
                f"{MIN_VOCAB_SIZE}: 256 bytes and 5 special tokens. "
                "Try model.tokenizer_vocab_size=8192"
            )
        if self.tokenizer_vocab_size and not self.from_scratch:
            found.append(
                f"model.tokenizer_vocab_size: got {self.tokenizer_vocab_size} with model.init="
                f"{self.init}; a new tokenizer needs new weights. Try model.init=scratch"
            )
        if self.tokenizer_vocab_size and self.tokenizer:
            found.append(
                f"model.tokenizer_vocab_size: got {self.tokenizer_vocab_size} beside "
                f"model.tokenizer={self.tokenizer}; need one of the two"
            )
        return found

    def missing(self) -> list[str]:
        """The line for a model that is not named and not made from nothing."""
        if self.path or self.init == "scratch":
            return []
        return [
            "model.path: none given; need a model folder, run folder or hub id, or "
            "model.init=scratch. "
            "Try model=runs/sft, or model=tiny (shipped, random weights)"
        ]

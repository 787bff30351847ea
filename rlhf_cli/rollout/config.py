from dataclasses import dataclass, field
from typing import Annotated

from rlhf_cli.config.schema import Escapes, Ge, Gt, Le, Seed, Unit


@dataclass(kw_only=True)
class SamplingConfig:
    """How tokens are drawn."""

    max_new_tokens: Annotated[int, Ge(1), Unit("tokens")] = 128
    """Longest response."""

    min_new_tokens: Annotated[int, Ge(0), Unit("tokens")] = 0
    """No end token is drawn before this many; a stop string still ends a response."""

    temperature: Annotated[float, Ge(0)] = 1.0
    """Divides the logits; 0 is greedy."""

    top_k: Annotated[int, Ge(0), Unit("tokens")] = 0
    """Keep the k likeliest tokens; 0 keeps all."""

    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Keep the likeliest tokens up to this probability mass; 1 keeps all."""

    min_p: Annotated[float, Ge(0), Le(1)] = 0.0
    """Drop tokens under this share of the likeliest one's probability; 0 drops none."""

    stop: list[Annotated[str, Escapes()]] = field(default_factory=list)
    r"""Strings that end a response, beside the model's own end tokens. `["\n"]` on the command line
    is a line end."""

    seed: Seed = 0
    """Seed of the draws."""

    cuda_graphs: bool = False
    """Record the kernels of a decoding step once and launch them together: for few responses at
    once on a GPU, where launches take longer than they compute. CUDA only."""

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        if self.min_new_tokens <= self.max_new_tokens:
            return []
        return [
            f"sampling.min_new_tokens: got {self.min_new_tokens}, more than "
            f"sampling.max_new_tokens={self.max_new_tokens}. "
            f"Try sampling.min_new_tokens={self.max_new_tokens}"
        ]

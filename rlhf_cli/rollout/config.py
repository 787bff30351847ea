from dataclasses import dataclass, field
from typing import Annotated

from rlhf_cli.config.schema import Escapes, Ge, Gt, Le, Seed, Unit


@dataclass(kw_only=True)
class SamplingConfig:
    """How tokens are sampled."""

    max_new_tokens: Annotated[int, Ge(1), Unit("tokens")] = 128
    """Maximum length of a response."""

    min_new_tokens: Annotated[int, Ge(0), Unit("tokens")] = 0
    """Number of tokens before which no end token is sampled; a stop string still ends a
    response."""

    temperature: Annotated[float, Ge(0)] = 1.0
    """Temperature that divides the logits; 0 is greedy decoding."""

    top_k: Annotated[int, Ge(0), Unit("tokens")] = 0
    """Keep the k most likely tokens; 0 keeps all."""

    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    """Nucleus sampling: keep the most likely tokens up to this probability mass; 1 keeps all."""

    min_p: Annotated[float, Ge(0), Le(1)] = 0.0
    """Drop tokens less likely than this fraction of the most likely token's probability; 0 drops
    none."""

    stop: list[Annotated[str, Escapes()]] = field(default_factory=list)
    r"""Strings that end a response, in addition to the model's end tokens. `["\n"]` on the command
    line is a line break."""

    seed: Seed = 0
    """Seed of the sampler."""

    cuda_graphs: bool = False
    """Capture a decoding step as a CUDA graph and replay it. Faster for small batches on a GPU,
    where launching a kernel takes longer than running it. CUDA only."""

    def problems(self) -> list[str]:
        """Contradictions, one line each."""
        if self.min_new_tokens <= self.max_new_tokens:
            return []
        return [
            f"sampling.min_new_tokens: got {self.min_new_tokens}, more than "
            f"sampling.max_new_tokens={self.max_new_tokens}. "
            f"Try sampling.min_new_tokens={self.max_new_tokens}"
        ]

"""A model that answers prompts, as every verb that lets one write needs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from rlhf_cli.context import RunContext
from rlhf_cli.data.records.fields import Prompt
from rlhf_cli.data.tokens.prompts import PromptEncoder, becomes_message
from rlhf_cli.models.config import ModelConfig, QuantConfig
from rlhf_cli.models.load import load_generator
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.engine import generate

PORTION = 8
"""Batches that are given together: in the last of them, fewer and fewer prompts are decoded."""


@dataclass(frozen=True)
class Answers:
    """Responses to some prompts: all samples of the first prompt, then of the second, and so on.

    Attributes:
        prompt_tokens: of each response, what the model was given.
        tokens: of each response, its end token included where there is one.
        texts: of the responses, without special tokens.
        ended: whether each ended by itself, not at the length limit.
    """

    prompt_tokens: list[list[int]]
    tokens: list[list[int]]
    texts: list[str]
    ended: list[bool]

    def extend(self, more: Answers) -> None:
        """Add those to later prompts."""
        self.prompt_tokens.extend(more.prompt_tokens)
        self.tokens.extend(more.tokens)
        self.texts.extend(more.texts)
        self.ended.extend(more.ended)


class Author:
    """A language model that only writes, with its tokenizer and its way to take a prompt.

    Args:
        cfg: which model.
        quant: how its weights are held.
        template: `auto`, `always` or `never`: whether text becomes a user's message.
        ctx: device and compute type.
    """

    def __init__(
        self, cfg: ModelConfig, quant: QuantConfig, template: str, ctx: RunContext
    ) -> None:
        self.tokenizer = load_tokenizer(cfg)
        self.model = load_generator(cfg, quant, self.tokenizer, ctx)
        self.encoder = PromptEncoder(
            self.tokenizer, as_message=becomes_message(template, cfg.path, self.tokenizer)
        )

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Token ids of each prompt."""
        return [self.encoder.encode(prompt) for prompt in prompts]

    def answer(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig,
        batch_size: int,
        samples: int = 1,
    ) -> Iterator[Answers]:
        """The answers of some batches after the others, in the order of the prompts.

        Args:
            prompts: text or messages.
            sampling: how tokens are drawn.
            batch_size: responses decoded at once.
            samples: responses to each prompt, which always come together.
        """
        tokens = self.encode(prompts)
        size = max(1, PORTION * batch_size // samples)
        for first in range(0, len(tokens), size):
            portion = tokens[first : first + size]
            rollout = generate(
                self.model,
                self.tokenizer,
                portion,
                sampling,
                samples=samples,
                slots=batch_size,
                numbers=range(first, first + len(portion)),
            )
            texts = self.tokenizer.batch_decode(rollout.tokens, skip_special_tokens=True)
            given = [prompt for prompt in portion for _ in range(samples)]
            yield Answers(given, rollout.tokens, texts, rollout.finished)


def plain(prompt: Prompt) -> str | list[dict[str, str]]:
    """A prompt as JSON has it: text, or a list of `{role, content}`."""
    return prompt if isinstance(prompt, str) else [asdict(turn) for turn in prompt]

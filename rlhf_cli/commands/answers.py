"""A model that answers prompts, as every verb that lets one write needs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlhf_cli.context import RunContext
from rlhf_cli.data.prompts import PromptSet, encode_all
from rlhf_cli.data.tokens.prompts import PromptEncoder, becomes_message
from rlhf_cli.models.config import ModelConfig, QuantConfig
from rlhf_cli.models.load import LoadInputs, load_generator
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.ends import add_end_token, end_tokens
from rlhf_cli.rollout.engine import generate
from rlhf_cli.rollout.text import ResponseStreamer, response_text

PORTION = 8
"""Batches that are given together: in the last of them, fewer and fewer prompts are decoded."""


@dataclass(frozen=True)
class Answers:
    """Responses to some prompts: all samples of the first prompt, then of the second, and so on.

    Attributes:
        prompt_tokens: of each response, what the model was given.
        tokens: of each response, its end token included where there is one.
        texts: of the responses, without the tokens that end them.
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
        skip_special_tokens: leave all special tokens out of the responses' texts.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        quant: QuantConfig,
        template: str,
        ctx: RunContext,
        *,
        skip_special_tokens: bool = False,
    ) -> None:
        self.skip_special_tokens = skip_special_tokens
        self.tokenizer = load_tokenizer(cfg)
        self.model = load_generator(cfg, quant, LoadInputs(self.tokenizer, ctx))
        as_message = becomes_message(template, cfg.path, cfg.revision, self.tokenizer)
        self.encoder = PromptEncoder(self.tokenizer, as_message=as_message)

    def encode(self, prompts: PromptSet) -> tuple[PromptSet, list[list[int]]]:
        """The prompts that the chat template takes, and the token ids of each.

        Raises:
            DataError: none is left.
        """
        found = encode_all(prompts, self.encoder)
        add_end_token(self.model, self.tokenizer, self.encoder.turn_end)
        return found

    def answer(
        self,
        tokens: Sequence[list[int]],
        sampling: SamplingConfig,
        batch_size: int,
        samples: int = 1,
    ) -> Iterator[Answers]:
        """The answers of some batches after the others, in the order of the prompts.

        Args:
            tokens: of each prompt, as `encode` gives them.
            sampling: how tokens are drawn.
            batch_size: responses decoded at once.
            samples: responses to each prompt, which always come together.
        """
        size = max(1, PORTION * batch_size // samples)
        ends = end_tokens(self.model, self.tokenizer)
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
            texts = [self._text(response, ends) for response in rollout.tokens]
            given = [prompt for prompt in portion for _ in range(samples)]
            yield Answers(given, rollout.tokens, texts, rollout.finished)

    def _text(self, response: Sequence[int], ends: Sequence[int]) -> str:
        skip = self.skip_special_tokens
        return response_text(self.tokenizer, response, ends, skip_special_tokens=skip)

    def stream(self, prompt: list[int], sampling: SamplingConfig) -> None:
        """Print the response to one prompt while it is generated."""
        streamer = ResponseStreamer(self.tokenizer, end_tokens(self.model, self.tokenizer))
        generate(self.model, self.tokenizer, [prompt], sampling, streamer=streamer)

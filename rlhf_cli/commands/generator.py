"""Text generation with a loaded language model, for every command that writes responses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_cli.context import RunContext
from rlhf_cli.data.prompts import PromptEncoder, PromptSet, encode_every_prompt, uses_chat_template
from rlhf_cli.models.config import ModelConfig, QuantConfig
from rlhf_cli.models.load import LoadInputs, load_generator
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.engine import generate
from rlhf_cli.rollout.response import Response, ResponseStreamer, response_text
from rlhf_cli.rollout.stopping import add_end_token, end_token_ids

BATCHES_PER_CALL = 8
"""Batches per call of the engine: only the last of them decodes with fewer rows than fit."""


@dataclass(frozen=True)
class Responses:
    """Responses to some prompts: all samples of the first prompt, then of the second, and so on.

    Attributes:
        prompt_tokens: token ids of each response's prompt.
        tokens: token ids of each response, with its end token if it has one.
        texts: of each response, without end tokens.
        ended: whether each response ended by an end token, not at the length limit.
    """

    prompt_tokens: list[list[int]]
    tokens: list[list[int]]
    texts: list[str]
    ended: list[bool]

    def extend(self, more: Responses) -> None:
        """Append the responses to later prompts."""
        self.prompt_tokens.extend(more.prompt_tokens)
        self.tokens.extend(more.tokens)
        self.texts.extend(more.texts)
        self.ended.extend(more.ended)


class TextGenerator:
    """A language model for inference, with its tokenizer and prompt format.

    Args:
        cfg: the model.
        quant: quantization of its weights.
        template: `auto`, `always` or `never`: whether a text becomes a user message.
        ctx: device and compute dtype.
        skip_special_tokens: remove all special tokens from the texts of responses.
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
        self.model = self.load(cfg, quant, ctx)
        as_message = uses_chat_template(template, cfg.path, cfg.revision, self.tokenizer)
        self.encoder = PromptEncoder(self.tokenizer, as_message=as_message)

    def load(self, cfg: ModelConfig, quant: QuantConfig, ctx: RunContext) -> Any:
        """Load the transformers model."""
        return load_generator(cfg, quant, LoadInputs(self.tokenizer, ctx))

    def encode(self, prompts: PromptSet) -> tuple[PromptSet, list[list[int]]]:
        """Encode the prompts; those that the chat template refuses are dropped.

        Returns:
            The remaining prompts, and the token ids of each.

        Raises:
            DataError: no prompt remains.
        """
        found = encode_every_prompt(prompts, self.encoder)
        add_end_token(self.model, self.tokenizer, self.encoder.turn_end)
        return found

    def generate(
        self,
        tokens: Sequence[list[int]],
        sampling: SamplingConfig,
        batch_size: int,
        samples: int = 1,
    ) -> Iterator[Responses]:
        """Generate responses, a few batches at a time, in the order of the prompts.

        Args:
            tokens: token ids of each prompt, from `encode`.
            sampling: sampling parameters.
            batch_size: responses decoded at once.
            samples: responses per prompt; they are never split between two results.
        """
        size = max(1, BATCHES_PER_CALL * batch_size // samples)
        ends = end_token_ids(self.model, self.tokenizer)
        for first in range(0, len(tokens), size):
            portion = tokens[first : first + size]
            numbers = range(first, first + len(portion))
            rollout = self.respond(portion, sampling, batch_size, samples, numbers)
            texts = [self._text(response, ends) for response in [one.token_ids for one in rollout]]
            given = [prompt for prompt in portion for _ in range(samples)]
            yield Responses(
                given, [one.token_ids for one in rollout], texts, [one.finished for one in rollout]
            )

    def respond(
        self,
        prompts: Sequence[list[int]],
        sampling: SamplingConfig,
        batch_size: int,
        samples: int,
        numbers: Sequence[int],
    ) -> list[Response]:
        """Generate responses to some of the prompts, which have these numbers."""
        return generate(
            self.model,
            self.tokenizer,
            prompts,
            sampling,
            samples=samples,
            batch_size=batch_size,
            prompt_numbers=numbers,
        )

    def _text(self, response: Sequence[int], ends: Sequence[int]) -> str:
        skip = self.skip_special_tokens
        return response_text(self.tokenizer, response, ends, skip_special_tokens=skip)

    def stream(self, prompt: list[int], sampling: SamplingConfig) -> None:
        """Print the response to one prompt while it is generated."""
        streamer = ResponseStreamer(self.tokenizer, end_token_ids(self.model, self.tokenizer))
        generate(self.model, self.tokenizer, [prompt], sampling, streamer=streamer)

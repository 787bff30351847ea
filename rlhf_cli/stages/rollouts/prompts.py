"""Prompts of the stages that generate responses: read, encoded, and checked against a model."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_cli.data.prompts import (
    PromptEncoder,
    PromptSet,
    encode_prompts,
    load_held_out_prompts,
    load_training_prompts,
)
from rlhf_cli.errors import ConfigError
from rlhf_cli.models.context_length import context_length
from rlhf_cli.models.vocabulary import require_embedded_ids
from rlhf_cli.models.wrapper import ModelWrapper
from rlhf_cli.stages.prepare_data import RunData, log_max_length
from rlhf_cli.stages.rollouts.config import RolloutSettings
from rlhf_cli.stages.tokenizers import load_prompt_encoder

EncodedPrompts = tuple[PromptSet, list[list[int]]]
"""Prompts and the tokens of each."""


@dataclass(frozen=True, kw_only=True)
class PromptData(RunData):
    """Tokenizer of a run that generates responses, and the encoder of its prompts.

    Attributes:
        encoder: encodes a prompt as token ids.
    """

    encoder: PromptEncoder


@dataclass(frozen=True, kw_only=True)
class PromptFileData(PromptData):
    """Tokenizer and encoded prompts of a data set.

    Attributes:
        prompts: training prompts and their tokens.
        held_out: held-out prompts and their tokens, or None.
        max_new_tokens: maximum tokens of a response; with its prompt it must fit the positions.
    """

    prompts: EncodedPrompts
    held_out: EncodedPrompts | None
    max_new_tokens: int

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt."""
        sets = [self.prompts, *([self.held_out] if self.held_out else [])]
        return max(len(ids) for _, tokens in sets for ids in tokens)

    def require_fits(self, model: ModelWrapper, name: str = "model") -> None:
        """Check that every prompt leaves room for a response in a model's positions."""
        room, new = context_length(model.model), self.max_new_tokens
        sets = [self.prompts, *([self.held_out] if self.held_out else [])]
        for found, tokens in sets:
            require_embedded_ids(tokens, model.model, found.locations.__getitem__, name)
        if room and self.longest_prompt + new > room:
            raise ConfigError(
                f"data.max_length: the longest prompt has {self.longest_prompt} tokens and a "
                f"response up to {new}, more than the {name}'s {room} positions. "
                f"Try data.max_length={room}"
            )


def load_prompt_data(cfg: RolloutSettings, stage: str) -> PromptFileData:
    """Load tokenizer and prompts, and encode the prompts.

    Args:
        cfg: the whole configuration.
        stage: names the shipped rows, and stands in errors.
    """
    encoder = load_prompt_encoder(cfg)
    log_max_length(cfg.data, cfg.model)
    most = cfg.data.max_length - cfg.sampling.max_new_tokens

    def encode(found: PromptSet) -> EncodedPrompts:
        return encode_prompts(found, encoder, most, cfg.data.truncation)

    prompts = encode(load_training_prompts(cfg.data, stage, cfg.seed))
    held_out = load_held_out_prompts(cfg.data, stage)
    encoded = encode(held_out) if held_out else None
    prompts[0].report.templated = encoder.used_template
    return PromptFileData(
        tokenizer=encoder.tokenizer,
        report=prompts[0].report,
        held_out_report=held_out.report if held_out else None,
        encoder=encoder,
        prompts=prompts,
        held_out=encoded,
        max_new_tokens=cfg.sampling.max_new_tokens,
    )

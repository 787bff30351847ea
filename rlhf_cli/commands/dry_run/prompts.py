"""Prompts in the dry run of a command that responds to them, here or by servers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.commands.dry_run.section import Section
from rlhf_cli.config.references import public_url
from rlhf_cli.data.prompts import (
    PromptEncoder,
    PromptSet,
    encode_every_prompt,
    uses_chat_template,
)
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.tokenizer import load_tokenizer

MAX_PROMPTS = 2000
"""Prompts that are encoded; the tokens of others are taken to be alike."""


def prompt_lengths(template: str, model: ModelConfig, prompts: PromptSet) -> NDArray[np.int64]:
    """Tokens of each prompt as a model gets it, of up to `MAX_PROMPTS`.

    Args:
        template: whether a text becomes a user message.
        model: whose tokenizer encodes them.
        prompts: texts or messages.

    Raises:
        DataError: no prompt remains.
    """
    tokenizer = load_tokenizer(model)
    as_message = uses_chat_template(template, model.path, model.revision, tokenizer)
    encoder = PromptEncoder(tokenizer, as_message=as_message)
    _, tokens = encode_every_prompt(prompts.select(range(min(len(prompts), MAX_PROMPTS))), encoder)
    return np.array([len(ids) for ids in tokens])


def prompt_section(cfg: Any, prompts: PromptSet, longest: int) -> Section:
    """The prompts, the longest of which has so many tokens, and the responses to them."""
    new, samples = cfg.sampling.max_new_tokens, getattr(cfg, "samples_per_prompt", 1)
    at_once = cfg.rollout.concurrency if cfg.rollout.is_used else cfg.batch_size
    lines = [
        ("prompts", f"{len(prompts):,}, the longest of {longest:,} tokens"),
        ("responses", f"{samples} to each prompt, {new} tokens at most, {at_once} at once"),
    ]
    facts = {
        "prompts": len(prompts),
        "longest_tokens": longest,
        "responses": len(prompts) * samples,
        "max_new_tokens": new,
    }
    return Section("data", lines, facts)


def served_sections(cfg: Any, models: Sequence[ModelConfig], prompts: PromptSet) -> list[Section]:
    """The dry run of a command whose responses come from servers, which nothing asks here.

    Raises:
        ConfigError: a model is not here.
        DataError: no prompt remains.
    """
    longest = max(int(prompt_lengths(cfg.template, model, prompts).max()) for model in models)
    servers = [public_url(address) for address in cfg.rollout.addresses]
    each = ", for each model in turn" if len(models) > 1 else ""
    lines = [
        *(("model", model.path) for model in models),
        ("server", ", ".join(servers) or f"{cfg.rollout.start}, started and ended{each}"),
        ("context", f"{longest + cfg.sampling.max_new_tokens:,} tokens of prompt and response"),
        ("memory", "that of the server, which is not estimated; no weights are loaded here"),
        ("output", cfg.output or "the screen"),
    ]
    facts = {
        "models": [model.path for model in models],
        "servers": servers,
        "start": cfg.rollout.start,
        "context_length": longest + cfg.sampling.max_new_tokens,
        "output": cfg.output,
    }
    return [Section("run", lines, facts), prompt_section(cfg, prompts, longest)]

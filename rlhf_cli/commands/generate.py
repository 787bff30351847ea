"""Write responses to prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from rlhf_cli.commands.answer_rows import BestRows, PlainRows, RankedRows, ScoredRows
from rlhf_cli.commands.answers import Author
from rlhf_cli.commands.config import GenerateConfig
from rlhf_cli.commands.output import Write, writing
from rlhf_cli.config.schema import no_rows
from rlhf_cli.context import RunContext, open_context, say
from rlhf_cli.data.prompts import PromptEncoder, PromptSet, load_prompts
from rlhf_cli.data.records.fields import Message, Messages, Prompt
from rlhf_cli.errors import ConfigError, DataError
from rlhf_cli.progress import ProgressCount
from rlhf_cli.rewards.rewards import open_rewards
from rlhf_cli.rollout.graphs import require_cuda


def run(cfg: GenerateConfig) -> None:
    """Answer one prompt, streaming it, or many in batches."""
    ctx = open_context(cfg.precision, cfg.sampling.seed, Path())
    require_cuda(cfg.sampling, ctx.device)
    prompts = _prompts(cfg)
    skip = cfg.reward.skip_special_tokens
    author = Author(cfg.model, cfg.quant, cfg.template, ctx, skip_special_tokens=skip)
    if cfg.system:
        prompts = with_system(cfg.system, prompts, author.encoder)
    prompts, tokens = author.encode(prompts)
    if len(prompts) == 1 and cfg.samples_per_prompt == 1 and not cfg.output:
        author.stream(tokens[0], cfg.sampling)
    else:
        _answer_all(cfg, author, _rows(cfg, author, ctx), prompts, tokens)


def _prompts(cfg: GenerateConfig) -> PromptSet:
    if not no_rows(cfg.prompts):
        return load_prompts(cfg.prompts)
    given = [cfg.prompt] if isinstance(cfg.prompt, str) else cfg.prompt
    return PromptSet([prompt for prompt in given if prompt])


def with_system(system: str, prompts: PromptSet, encoder: PromptEncoder) -> PromptSet:
    """The prompts as messages, a system message in front.

    Args:
        system: its text.
        prompts: text or messages.
        encoder: of the model; says whether text becomes a user's message.

    Raises:
        ConfigError: the model takes the text prompts as text.
        DataError: a prompt has a system message already.
    """
    asked = [encoder.to_messages(prompt) for prompt in prompts.prompts]
    found: list[Prompt] = []
    for index, prompt in enumerate(asked):
        if isinstance(prompt, str):
            raise ConfigError(
                "system: given, and the model takes text prompts as text, without a chat "
                "template. Try template=always"
            )
        if prompt[0].role == "system":
            raise DataError(
                f"{prompts.location(index)}: has a system message of its own beside system="
                f"{system}. Leave system out"
            )
        found.append((Message("system", system, tools=prompt[0].tools), *_without_tools(prompt)))
    return replace(prompts, prompts=found)


def _without_tools(prompt: Messages) -> Messages:
    """Tools stand on the first message of a chat, which the system message is now."""
    return (replace(prompt[0], tools=()), *prompt[1:])


def _rows(cfg: GenerateConfig, author: Author, ctx: RunContext) -> PlainRows | ScoredRows:
    """What makes rows of answers. What scores them is loaded now: its faults show before any."""
    if not cfg.reward.is_given:
        return PlainRows()
    rewards = open_rewards(cfg.reward, author.tokenizer, ctx)
    kind = BestRows if cfg.keep == "best" else RankedRows
    return kind(rewards, author.encoder.to_messages)


def _answer_all(
    cfg: GenerateConfig,
    author: Author,
    rows: PlainRows | ScoredRows,
    prompts: PromptSet,
    tokens: list[list[int]],
) -> None:
    """In batches, in the order given; each batch is written as soon as it is there."""
    progress = ProgressCount("responses", len(tokens) * cfg.samples_per_prompt)
    if not cfg.output:
        with progress:
            _write_all(cfg, author, rows, prompts, tokens, progress, _printing_below(progress))
        say(rows.told())
        return
    with writing(Path(cfg.output)) as write, progress:
        _write_all(cfg, author, rows, prompts, tokens, progress, write)
    say(f"{rows.told()} -> {cfg.output}")


def _printing_below(progress: ProgressCount) -> Write:
    """Prints rows, each at the start of a line."""

    def write(text: str) -> None:
        progress.end_line()
        print(text, end="", flush=True)

    return write


def _write_all(
    cfg: GenerateConfig,
    author: Author,
    rows: PlainRows | ScoredRows,
    prompts: PromptSet,
    tokens: list[list[int]],
    progress: ProgressCount,
    write: Write,
) -> None:
    done, samples = 0, cfg.samples_per_prompt
    for answers in author.answer(tokens, cfg.sampling, cfg.batch_size, samples):
        progress.add(len(answers.texts))
        answered = range(done, done + len(answers.texts) // samples)
        made, done = rows.make(prompts.select(answered), answers), answered.stop
        write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made))

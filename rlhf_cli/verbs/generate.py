"""Write responses to prompts."""

from __future__ import annotations

import json
from pathlib import Path

from rlhf_cli.config.schema import no_rows
from rlhf_cli.context import RunContext, open_context, say
from rlhf_cli.data.prompts import PromptSet, load_prompts
from rlhf_cli.rewards.rewards import open_rewards
from rlhf_cli.rollout.graphs import require_cuda
from rlhf_cli.verbs.answer_rows import BestRows, PlainRows, RankedRows, ScoredRows
from rlhf_cli.verbs.answers import Author
from rlhf_cli.verbs.config import GenerateConfig
from rlhf_cli.verbs.output import Write, writing


def run(cfg: GenerateConfig) -> None:
    """Answer one prompt, streaming it, or many in batches."""
    ctx = open_context(cfg.precision, cfg.sampling.seed, Path())
    require_cuda(cfg.sampling, ctx.device)
    prompts = _prompts(cfg)
    skip = cfg.reward.skip_special_tokens
    author = Author(cfg.model, cfg.quant, cfg.template, ctx, skip_special_tokens=skip)
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


def _rows(cfg: GenerateConfig, author: Author, ctx: RunContext) -> PlainRows | ScoredRows:
    """What makes rows of answers. What scores them is loaded now: its faults show before any."""
    if not cfg.reward.is_given:
        return PlainRows()
    rewards = open_rewards(cfg.reward, author.tokenizer, ctx)
    kind = BestRows if cfg.keep == "best" else RankedRows
    return kind(rewards, author.encoder.as_given)


def _answer_all(
    cfg: GenerateConfig,
    author: Author,
    rows: PlainRows | ScoredRows,
    prompts: PromptSet,
    tokens: list[list[int]],
) -> None:
    """In batches, in the order given; each batch is written as soon as it is there."""
    if not cfg.output:
        _write_all(cfg, author, rows, prompts, tokens, _print)
        say(rows.told())
        return
    with writing(Path(cfg.output)) as write:
        _write_all(cfg, author, rows, prompts, tokens, write)
    say(f"{rows.told()} -> {cfg.output}")


def _print(text: str) -> None:
    print(text, end="", flush=True)


def _write_all(
    cfg: GenerateConfig,
    author: Author,
    rows: PlainRows | ScoredRows,
    prompts: PromptSet,
    tokens: list[list[int]],
    write: Write,
) -> None:
    done, samples = 0, cfg.samples_per_prompt
    for answers in author.answer(tokens, cfg.sampling, cfg.batch_size, samples):
        answered = range(done, done + len(answers.texts) // samples)
        made, done = rows.make(prompts.part(answered), answers), answered.stop
        write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made))

"""Write responses to prompts."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import TextStreamer

from rlhf_cli.config.schema import no_rows
from rlhf_cli.context import open_context, say
from rlhf_cli.data.prompts import load_prompts
from rlhf_cli.data.records.fields import Prompt
from rlhf_cli.rollout.engine import generate
from rlhf_cli.verbs.answers import Author, plain
from rlhf_cli.verbs.config import GenerateConfig
from rlhf_cli.verbs.output import append, open_output


def run(cfg: GenerateConfig) -> None:
    """Answer one prompt, streaming it, or many in batches."""
    ctx = open_context(cfg.precision, cfg.sampling.seed, Path())
    prompts = _prompts(cfg)
    author = Author(cfg.model, cfg.quant, cfg.template, ctx)
    if len(prompts) == 1 and not cfg.output:
        streamer = TextStreamer(author.tokenizer, skip_prompt=True, skip_special_tokens=True)
        tokens = author.encode(prompts)
        generate(author.model, author.tokenizer, tokens, cfg.sampling, streamer=streamer)
    else:
        _answer_all(cfg, author, prompts)


def _prompts(cfg: GenerateConfig) -> list[Prompt]:
    given = [cfg.prompt] if isinstance(cfg.prompt, str) else cfg.prompt
    prompts: list[Prompt] = [prompt for prompt in given if prompt]
    return prompts + ([] if no_rows(cfg.prompts) else list(load_prompts(cfg.prompts).prompts))


def _answer_all(cfg: GenerateConfig, author: Author, prompts: list[Prompt]) -> None:
    """In batches, in the order given; each batch is written as soon as it is there."""
    target = open_output(Path(cfg.output)) if cfg.output else None
    finished, rest = 0, iter(prompts)
    for answers in author.answer(prompts, cfg.sampling, cfg.batch_size):
        finished += sum(answers.ended)
        rows = [{"prompt": plain(next(rest)), "response": text} for text in answers.texts]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if target is None:
            print(lines, end="", flush=True)
        else:
            append(target, lines)
    where = f" -> {target}" if target else ""
    say(f"{len(prompts)} responses, {finished} ended by themselves{where}")

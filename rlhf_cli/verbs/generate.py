"""Write responses to prompts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TextStreamer

from rlhf_cli.config.schema import no_rows
from rlhf_cli.context import open_context, say
from rlhf_cli.data.records.fields import Prompt
from rlhf_cli.data.tokens.prompts import PromptEncoder, load_prompts
from rlhf_cli.errors import DataError
from rlhf_cli.models.load import load_generator
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.rollout.engine import Rollout, generate
from rlhf_cli.runs import artifact
from rlhf_cli.verbs.config import GenerateConfig


def run(cfg: GenerateConfig) -> None:
    """Answer one prompt, streaming it, or many in batches."""
    ctx = open_context(cfg.precision, cfg.sampling.seed, Path())
    tokenizer = load_tokenizer(cfg.model)
    prompts = _prompts(cfg)
    model = load_generator(cfg.model, cfg.quant, tokenizer, ctx)
    encoder = PromptEncoder(tokenizer, as_message=_as_message(cfg, tokenizer))
    tokens = [encoder.encode(prompt) for prompt in prompts]
    if len(prompts) == 1 and not cfg.output:
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        generate(model, tokenizer, tokens, cfg.sampling, streamer)
        return
    _answer_all(cfg, model, tokenizer, prompts, tokens)


def _as_message(cfg: GenerateConfig, tokenizer: Any) -> bool:
    """Whether a text prompt goes through the chat template."""
    if cfg.template != "auto":
        return cfg.template == "always"
    facts = artifact.read(Path(cfg.model.path).expanduser())
    return bool(tokenizer.chat_template) and facts.get("trained_on") != "text"


def _prompts(cfg: GenerateConfig) -> list[Prompt]:
    given = [cfg.prompt] if isinstance(cfg.prompt, str) else cfg.prompt
    prompts: list[Prompt] = [prompt for prompt in given if prompt]
    return prompts + ([] if no_rows(cfg.prompts) else load_prompts(cfg.prompts))


def _answer_all(
    cfg: GenerateConfig,
    model: Any,
    tokenizer: Any,
    prompts: list[Prompt],
    tokens: list[list[int]],
) -> None:
    """In batches, in the order given; each batch is written as soon as it is there."""
    finished = 0
    target = _open_output(Path(cfg.output)) if cfg.output else None
    for first in range(0, len(prompts), cfg.batch_size):
        batch = slice(first, first + cfg.batch_size)
        rollout = generate(model, tokenizer, tokens[batch], cfg.sampling)
        finished += sum(rollout.finished)
        _write(prompts[batch], rollout, tokenizer, target)
    where = f" -> {target}" if target else ""
    say(f"{len(prompts)} responses, {finished} ended by themselves{where}")


def _open_output(target: Path) -> Path:
    """An empty file; refused before the first answer where it cannot be written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("", encoding="utf-8")
    except OSError as error:
        raise DataError(f"output: {target} cannot be written ({error.strerror})") from error
    return target


def _write(prompts: list[Prompt], rollout: Rollout, tokenizer: Any, target: Path | None) -> None:
    lines = []
    for prompt, response in zip(prompts, rollout.tokens, strict=True):
        shown = prompt if isinstance(prompt, str) else [asdict(turn) for turn in prompt]
        text = tokenizer.decode(response, skip_special_tokens=True)
        lines.append(json.dumps({"prompt": shown, "response": text}, ensure_ascii=False) + "\n")
    if target is None:
        print("".join(lines), end="", flush=True)
        return
    try:
        with target.open("a", encoding="utf-8") as file:
            file.writelines(lines)
    except OSError as error:
        raise DataError(f"output: {target} cannot be written ({error.strerror})") from error

"""What a stage opens before it loads a model: the tokenizer and the rows."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_cli.context import RunContext, say, silence
from rlhf_cli.data.examples import Loaded, load_eval_examples, load_examples
from rlhf_cli.data.records.corpus import holds_chats, iter_texts
from rlhf_cli.data.report import DataReport
from rlhf_cli.data.tokens.prompts import becomes_message
from rlhf_cli.models.chatml import give_chatml
from rlhf_cli.models.tokenizer import load_tokenizer, trains_tokenizer
from rlhf_cli.preflight.models import positions
from rlhf_cli.runs.contents import TOKENIZER
from rlhf_cli.stages.config import ResponseRowsConfig, StageConfig

Records = tuple[type, ...]


@dataclass(frozen=True)
class Opened:
    """Tokenizer and tokenized rows.

    Attributes:
        tokenizer: a fast one, with a chat template where the rows are chats.
        new_tokens: ids that it got here and the model has never seen.
        train: training examples and their report.
        held_out: the same of held-out rows, or none.
    """

    tokenizer: Any
    new_tokens: tuple[int, ...]
    train: Loaded
    held_out: Loaded | None


def open_rows(cfg: StageConfig, ctx: RunContext, stage: str, records: Records) -> Opened:
    """Tokenizer and rows of a run; ranks take what was prepared for them.

    Args:
        cfg: the whole configuration.
        ctx: the run folder, and whether several processes share it.
        stage: names the shipped rows, and stands in errors.
        records: the record classes that the stage takes, the preferred first.
    """
    prepared = ctx.ranks.size > 1
    if prepared:
        cfg = _with_saved_tokenizer(cfg, ctx.out)
    # what there is to say about prepared rows was said when they were
    with silence() if prepared else contextlib.nullcontext():
        return _open(cfg, stage, records, cached_only=prepared)


def prepare_rows(cfg: StageConfig, out: Path, stage: str, records: Records) -> None:
    """Train the tokenizer and tokenize the rows, once, before several processes start."""
    if trains_tokenizer(cfg.model):
        _open_tokenizer(cfg, stage, records).save_pretrained(out / TOKENIZER)
        cfg = _with_saved_tokenizer(cfg, out)
    _open(cfg, stage, records, cached_only=False)


def _open(cfg: StageConfig, stage: str, records: Records, *, cached_only: bool) -> Opened:
    say_max_length(cfg)
    tokenizer = _open_tokenizer(cfg, stage, records)
    how = {"as_messages": cfg.as_messages, "cached_only": cached_only}
    lacks = not tokenizer.chat_template
    chats = lacks and (cfg.as_messages or holds_chats(cfg.data, stage, records))
    new = give_chatml(tokenizer) if chats else []
    train = load_examples(cfg.data, stage, tokenizer, records, cfg.seed, **how)
    say_plain_text(cfg, tokenizer, train[1])
    held_out = load_eval_examples(cfg.data, stage, tokenizer, records, **how)
    return Opened(tokenizer, tuple(new), train, held_out)


def say_max_length(cfg: StageConfig) -> None:
    """Say that the longest row is what the model takes, to which the default is lowered."""
    if cfg.data.max_length == positions(cfg.model):
        say(f"data.max_length: {cfg.data.max_length}, the model's positions")


def say_plain_text(cfg: StageConfig, tokenizer: Any, report: DataReport) -> None:
    """Say that a model with a chat template is given text without it, and the key to set.

    Args:
        cfg: the whole configuration; only `template=auto` leaves the choice open.
        tokenizer: of the model.
        report: of the rows.
    """
    if not isinstance(cfg, ResponseRowsConfig) or cfg.template != "auto":
        return
    model = cfg.model
    chats = becomes_message("auto", model.path, model.revision, tokenizer)
    if chats and not report.templated and not model.from_scratch:
        say(
            f"template: {model.path} has a chat template, and the rows are text, which is joined "
            "without it. template=always makes prompts the user's messages and responses the "
            "assistant's; template=never leaves this line out"
        )


def _open_tokenizer(cfg: StageConfig, stage: str, records: Records) -> Any:
    return load_tokenizer(cfg.model, lambda: iter_texts(cfg.data, stage, records))


def _with_saved_tokenizer(cfg: StageConfig, out: Path) -> StageConfig:
    if not trains_tokenizer(cfg.model):
        return cfg
    model = replace(cfg.model, tokenizer=str(out / TOKENIZER), tokenizer_vocab_size=0)
    return replace(cfg, model=model)

"""Supervised fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_cli.context import open_context
from rlhf_cli.data.examples import load_eval_examples, load_examples
from rlhf_cli.data.records import ChatRecord, PromptCompletionRecord
from rlhf_cli.data.sources import iter_texts
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.stages.likelihood import train_likelihood
from rlhf_cli.stages.sft.config import SFTConfig

RECORDS = (PromptCompletionRecord, ChatRecord)


def run(cfg: SFTConfig, out: Path) -> dict[str, Any]:
    """Learn the responses of prompt/completion rows or chats."""
    ctx = open_context(cfg.train.precision, cfg.seed, out)
    tokenizer = load_tokenizer(
        cfg.model, lambda: iter_texts(cfg.data.path, "sft", cfg.data.columns)
    )
    train = load_examples(cfg.data, "sft", tokenizer, RECORDS)
    held_out = load_eval_examples(cfg.data, "sft", tokenizer, RECORDS)
    return train_likelihood(cfg, ctx, tokenizer, train, held_out)

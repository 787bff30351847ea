"""Domain pretraining."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_cli.context import open_context
from rlhf_cli.data.examples import load_eval_examples, load_examples
from rlhf_cli.data.records import TextRecord
from rlhf_cli.data.sources import iter_texts
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.stages.likelihood import train_likelihood
from rlhf_cli.stages.pretrain.config import PretrainConfig

RECORDS = (TextRecord,)


def run(cfg: PretrainConfig, out: Path) -> dict[str, Any]:
    """Learn every token of raw text."""
    ctx = open_context(cfg.train.precision, cfg.seed, out)
    tokenizer = load_tokenizer(
        cfg.model, lambda: iter_texts(cfg.data.path, "pretrain", cfg.data.columns)
    )
    train = load_examples(cfg.data, "pretrain", tokenizer, RECORDS)
    held_out = load_eval_examples(cfg.data, "pretrain", tokenizer, RECORDS)
    return train_likelihood(cfg, ctx, tokenizer, train, held_out)

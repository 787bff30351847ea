"""Supervised fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_cli.stages.likelihood import train_likelihood
from rlhf_cli.stages.prepare_data import prepare_rows
from rlhf_cli.stages.records import SFT_RECORDS
from rlhf_cli.stages.sft.config import SFTConfig


def prepare(cfg: SFTConfig, out: Path) -> None:
    """Tokenize before several processes start."""
    prepare_rows(cfg, out, "sft", SFT_RECORDS)


def run(cfg: SFTConfig, out: Path) -> dict[str, Any]:
    """Train on the responses of prompt/completion rows or chats."""
    return train_likelihood(cfg, out, "sft", SFT_RECORDS)

"""Domain pretraining."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_cli.stages.likelihood import train_likelihood
from rlhf_cli.stages.prepare_data import prepare_rows
from rlhf_cli.stages.pretrain.config import PretrainConfig
from rlhf_cli.stages.records import PRETRAIN_RECORDS


def prepare(cfg: PretrainConfig, out: Path) -> None:
    """Tokenize before several processes start."""
    prepare_rows(cfg, out, "pretrain", PRETRAIN_RECORDS)


def run(cfg: PretrainConfig, out: Path) -> dict[str, Any]:
    """Train on every token of raw text."""
    return train_likelihood(cfg, out, "pretrain", PRETRAIN_RECORDS)

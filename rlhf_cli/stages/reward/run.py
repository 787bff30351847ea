"""Reward model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_cli.data.records.record import (
    LabelledRecord,
    PreferenceRecord,
    RankedRecord,
    ScoredRecord,
)
from rlhf_cli.models.load import LoadInputs, load_reward_model
from rlhf_cli.stages.opening import prepare_rows
from rlhf_cli.stages.reward.config import RewardConfig
from rlhf_cli.stages.reward.loss import reward_loss
from rlhf_cli.stages.session import Session

RECORDS: tuple[type, ...] = (PreferenceRecord, RankedRecord, ScoredRecord, LabelledRecord)


def prepare(cfg: RewardConfig, out: Path) -> None:
    """Tokenize before several processes start."""
    prepare_rows(cfg, out, "reward", RECORDS)


def run(cfg: RewardConfig, out: Path) -> dict[str, Any]:
    """Learn to score responses from pairs, rankings, scores or labels."""
    run = Session(cfg, out, "reward", RECORDS)
    model = run.use(load_reward_model(cfg, LoadInputs(run.tokenizer, run.ctx, run.new_tokens)))
    loss = reward_loss(cfg, model, run.report.kind)
    return run.train(model, loss, run.measured(loss))

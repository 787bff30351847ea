"""Direct preference optimization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_cli.data.records.record import PreferenceRecord
from rlhf_cli.models.load import load_policy
from rlhf_cli.stages.dpo.config import DPOConfig
from rlhf_cli.stages.dpo.loss import preference_loss
from rlhf_cli.stages.opening import prepare_rows
from rlhf_cli.stages.reference import open_reference
from rlhf_cli.stages.session import Session

RECORDS: tuple[type, ...] = (PreferenceRecord,)


def prepare(cfg: DPOConfig, out: Path) -> None:
    """Tokenize before several processes start."""
    prepare_rows(cfg, out, "dpo", RECORDS)


def run(cfg: DPOConfig, out: Path) -> dict[str, Any]:
    """Learn from pairs which of two responses is better."""
    run = Session(cfg, out, "dpo", RECORDS)
    policy = run.use(load_policy(cfg, run.tokenizer, run.ctx, run.new_tokens))
    reference = open_reference(cfg, policy, run, cfg.ld_alpha)
    loss = preference_loss(cfg, policy, reference)
    return run.train(policy, loss, run.measured(loss))

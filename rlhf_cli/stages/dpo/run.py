"""Direct preference optimization."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from rlhf_cli.data.records.record import PreferenceRecord
from rlhf_cli.models.load import LoadInputs, load_policy
from rlhf_cli.stages.dpo.config import DPOConfig
from rlhf_cli.stages.dpo.loss import preference_loss
from rlhf_cli.stages.dpo.moving import MovingReference
from rlhf_cli.stages.dpo.unpaired import unpaired_loss, with_mismatched
from rlhf_cli.stages.labelled import RECORDS as LABELLED
from rlhf_cli.stages.opening import prepare_rows
from rlhf_cli.stages.reference import open_reference
from rlhf_cli.stages.session import Session, as_they_are


def records_of(cfg: DPOConfig) -> tuple[type, ...]:
    """The record classes that the loss takes, the preferred first."""
    return LABELLED if cfg.unpaired else (PreferenceRecord,)


def prepare(cfg: DPOConfig, out: Path) -> None:
    """Tokenize before several processes start."""
    prepare_rows(cfg, out, "dpo", records_of(cfg))


def run(cfg: DPOConfig, out: Path) -> dict[str, Any]:
    """Learn from pairs which of two responses is better, or with kto from labels."""
    mismatched = partial(with_mismatched, max_length=cfg.data.max_length)
    arrange = mismatched if cfg.unpaired else as_they_are
    run = Session(cfg, out, "dpo", records_of(cfg), arrange)
    policy = run.use(load_policy(cfg, LoadInputs(run.tokenizer, run.ctx, run.new_tokens)))
    reference = open_reference(cfg, policy, run, cfg.ld_alpha)
    make = unpaired_loss if cfg.unpaired else preference_loss
    loss = make(cfg, policy, reference)
    moving = None
    if reference.copy is not None and cfg.sync_steps:
        moving = MovingReference(policy, reference.copy, cfg.sync_steps, cfg.sync_share)
    return run.train(policy, loss, run.measured(loss), moving)

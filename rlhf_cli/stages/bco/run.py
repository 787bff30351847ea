"""Binary classifier optimization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_cli.losses.bco import Delta
from rlhf_cli.models.load import LoadInputs, load_policy
from rlhf_cli.stages.bco.config import BCOConfig
from rlhf_cli.stages.bco.loss import BCOState, labelled_loss
from rlhf_cli.stages.bco.matching import match_prompts
from rlhf_cli.stages.labelled import RECORDS, labelled
from rlhf_cli.stages.opening import prepare_rows
from rlhf_cli.stages.reference import open_reference
from rlhf_cli.stages.session import Session


def prepare(cfg: BCOConfig, out: Path) -> None:
    """Tokenize before several processes start."""
    prepare_rows(cfg, out, "bco", RECORDS)


def run(cfg: BCOConfig, out: Path) -> dict[str, Any]:
    """Learn from responses with a label, good or bad."""
    run = Session(cfg, out, "bco", RECORDS, labelled)
    policy = run.use(load_policy(cfg, LoadInputs(run.tokenizer, run.ctx, run.new_tokens)))
    reference = open_reference(cfg, policy, run)
    state = BCOState(Delta(cfg.delta, cfg.delta_decay), match_prompts(cfg, policy, run))
    loss = labelled_loss(cfg, policy, reference, state.delta)
    return run.train(policy, loss, run.measured(loss), state)

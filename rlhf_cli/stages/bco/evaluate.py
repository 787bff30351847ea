"""What a run of bco made, measured on held-out rows."""

from __future__ import annotations

from rlhf_cli.context import RunContext
from rlhf_cli.evaluation.measured import Measured
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.stages.bco.config import BCOConfig
from rlhf_cli.stages.compared import compared
from rlhf_cli.stages.held_out import open_held_out
from rlhf_cli.stages.labelled import RECORDS, labelled, separation


def evaluate(cfg: BCOConfig, stage: str, ctx: RunContext) -> list[Measured]:
    """How well rewards tell desirable held-out rows from others.

    Args:
        cfg: of the run; `model.path` is its result, `data.eval` the rows.
        stage: names the shipped rows, and stands in errors.
        ctx: device and compute type.
    """
    tokenizer = load_tokenizer(cfg.model)
    examples = labelled(open_held_out(cfg, stage, tokenizer, RECORDS))
    columns = compared(cfg, examples, tokenizer, ctx)
    reward = cfg.beta * (columns["logp"] - columns["reference"])
    return separation(reward, examples.columns["score"])

"""Binary classifier optimization: training, and evaluation of a finished run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from rlhf_cli.context import RunContext
from rlhf_cli.data.examples import Examples, Loaded
from rlhf_cli.evaluation.measured import Measured
from rlhf_cli.losses.bco import Delta
from rlhf_cli.models.load import load_policy
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.stages.bco.config import BCOConfig
from rlhf_cli.stages.bco.loss import BCOState, bco_row_loss
from rlhf_cli.stages.bco.udm import add_udm_weights
from rlhf_cli.stages.evaluation import (
    Evaluation,
    evaluate_against_reference,
    load_held_out,
    preference_logprob_metrics,
    require_reference,
)
from rlhf_cli.stages.prepare_data import load_stage_data, prepare_rows
from rlhf_cli.stages.reference import load_row_reference
from rlhf_cli.stages.training import open_run, prepare_training, train_and_save
from rlhf_cli.stages.unpaired import UNPAIRED_RECORDS, reward_separation, unpaired_examples


def prepare(cfg: BCOConfig, out: Path) -> None:
    """Tokenize before several processes start."""
    prepare_rows(cfg, out, "bco", UNPAIRED_RECORDS)


def run(cfg: BCOConfig, out: Path) -> dict[str, Any]:
    """Learn from responses with a label, good or bad."""
    ctx = open_run(cfg, out)
    data = load_stage_data(cfg, ctx, "bco", UNPAIRED_RECORDS, unpaired_examples)
    policy = load_policy(cfg, data.tokenizer, ctx, data.new_tokens)
    data.require_fits(policy)
    plan = prepare_training(cfg, ctx, policy, data)
    reference, data = load_row_reference(cfg, plan, policy, data)
    classifier, data = add_udm_weights(cfg, plan, policy, data)
    state = BCOState(Delta(cfg.delta, cfg.delta_decay), classifier)
    loss = bco_row_loss(cfg, policy, reference, state.delta)
    return train_and_save(plan, policy, loss, data, state=state)


def open_evaluation(cfg: BCOConfig, stage: str) -> Evaluation:
    """Open the held-out rows; measures how well rewards tell desirable ones from others.

    Log-probs of the responses are measured too.

    Args:
        cfg: of the run; `model.path` is its result, `data.eval` the rows.
        stage: names the shipped rows, and stands in errors.

    Raises:
        ConfigError: it is not known what the policy started from.
        DataError: the rows cannot be read.
    """
    require_reference(cfg)
    tokenizer = load_tokenizer(cfg.model)
    loaded = load_held_out(cfg, stage, tokenizer, UNPAIRED_RECORDS)
    return partial(_measure, cfg, tokenizer, loaded, unpaired_examples(loaded, "held-out"))


def _measure(
    cfg: BCOConfig, tokenizer: Any, loaded: Loaded, examples: Examples, ctx: RunContext
) -> list[Measured]:
    columns = evaluate_against_reference(cfg, examples, tokenizer, ctx)
    reward = cfg.beta * (columns["logp"] - columns["reference"])
    found = reward_separation(reward, examples.columns["score"])
    return [*found, *preference_logprob_metrics(columns, loaded[0], loaded[1].kind)]

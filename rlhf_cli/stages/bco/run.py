"""Binary classifier optimization: training, and evaluation of a finished run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from rlhf_cli.context import RunContext
from rlhf_cli.data.dataset import LoadedExamples
from rlhf_cli.data.examples import Examples
from rlhf_cli.evaluation.intervals import Measurement
from rlhf_cli.losses.unpaired import RewardShift
from rlhf_cli.models.load import LoadInputs, load_policy
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
from rlhf_cli.stages.examples import unpaired_examples
from rlhf_cli.stages.prepare_data import load_stage_data, prepare_rows
from rlhf_cli.stages.records import UNPAIRED_RECORDS
from rlhf_cli.stages.reference import load_row_reference
from rlhf_cli.stages.training import open_run, prepare_training, train_and_save
from rlhf_cli.stages.unpaired import reward_separation


def prepare(cfg: BCOConfig, out: Path) -> None:
    """Tokenize before several processes start."""
    prepare_rows(cfg, out, "bco", UNPAIRED_RECORDS)


def run(cfg: BCOConfig, out: Path) -> dict[str, Any]:
    """Train on responses labelled desirable or undesirable."""
    ctx = open_run(cfg, out)
    data = load_stage_data(cfg, ctx, "bco", UNPAIRED_RECORDS, unpaired_examples)
    policy = load_policy(cfg, LoadInputs(data.tokenizer, ctx, data.new_tokens))
    data.require_fits(policy)
    plan = prepare_training(cfg, ctx, policy, data)
    reference, data = load_row_reference(cfg, plan, policy, data)
    classifier, data = add_udm_weights(cfg, plan, policy, data)
    state = BCOState(RewardShift(cfg.delta, cfg.delta_decay), classifier)
    loss = bco_row_loss(cfg, policy, reference, state.delta)
    return train_and_save(plan, policy, loss, data, state=state)


def open_evaluation(cfg: BCOConfig, stage: str) -> Evaluation:
    """Load the held-out rows; the evaluation computes how well rewards separate the labels.

    It also computes log-probs of the responses.

    Args:
        cfg: configuration of the run; `model.path` is its result, `data.eval` the rows.
        stage: names the shipped rows, and stands in errors.

    Raises:
        ConfigError: the model that the policy started from is unknown.
        DataError: the rows cannot be read.
    """
    require_reference(cfg)
    tokenizer = load_tokenizer(cfg.model)
    loaded = load_held_out(cfg, stage, tokenizer, UNPAIRED_RECORDS)
    return partial(_measure, cfg, tokenizer, loaded, unpaired_examples(loaded, "held-out"))


def _measure(
    cfg: BCOConfig, tokenizer: Any, loaded: LoadedExamples, examples: Examples, ctx: RunContext
) -> list[Measurement]:
    columns = evaluate_against_reference(cfg, examples, tokenizer, ctx)
    reward = cfg.beta * (columns["logp"] - columns["reference"])
    found = reward_separation(reward, examples.columns["score"])
    return [*found, *preference_logprob_metrics(columns, loaded[0], loaded[1].kind)]

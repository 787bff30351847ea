"""Direct preference optimization: training, and evaluation of a finished run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_cli.context import RunContext
from rlhf_cli.data.examples import Examples, Loaded
from rlhf_cli.data.records.record import PreferenceRecord
from rlhf_cli.evaluation.measured import Measured
from rlhf_cli.evaluation.ranking import agreement
from rlhf_cli.models.load import load_policy
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.stages.dpo.config import DPOConfig
from rlhf_cli.stages.dpo.loss import MovingReference, kto_examples, kto_row_loss, preference_loss
from rlhf_cli.stages.evaluation import (
    Evaluation,
    evaluate_against_reference,
    load_held_out,
    preference_logprob_metrics,
    require_reference,
)
from rlhf_cli.stages.prepare_data import load_stage_data, prepare_rows, untransformed
from rlhf_cli.stages.reference import load_row_reference
from rlhf_cli.stages.training import open_run, prepare_training, train_and_save
from rlhf_cli.stages.unpaired import UNPAIRED_RECORDS as LABELLED
from rlhf_cli.stages.unpaired import reward_separation, unpaired_examples


def records_of(cfg: DPOConfig) -> tuple[type, ...]:
    """The record classes that the loss takes, the preferred first."""
    return LABELLED if cfg.unpaired else (PreferenceRecord,)


def prepare(cfg: DPOConfig, out: Path) -> None:
    """Tokenize before several processes start."""
    prepare_rows(cfg, out, "dpo", records_of(cfg))


def run(cfg: DPOConfig, out: Path) -> dict[str, Any]:
    """Learn from pairs which of two responses is better, or with kto from labels."""
    ctx = open_run(cfg, out)
    transform = partial(kto_examples, max_length=cfg.data.max_length)
    data = load_stage_data(
        cfg, ctx, "dpo", records_of(cfg), transform if cfg.unpaired else untransformed
    )
    policy = load_policy(cfg, data.tokenizer, ctx, data.new_tokens)
    data.require_fits(policy)
    plan = prepare_training(cfg, ctx, policy, data)
    reference, data = load_row_reference(cfg, plan, policy, data, cfg.ld_alpha)
    loss = (kto_row_loss if cfg.unpaired else preference_loss)(cfg, policy, reference)
    state = None
    if reference.copy is not None and cfg.sync_steps:
        state = MovingReference(policy, reference.copy, cfg.sync_steps, cfg.sync_share)
    return train_and_save(plan, policy, loss, data, state=state)


def open_evaluation(cfg: DPOConfig, stage: str) -> Evaluation:
    """Open the held-out rows: pairs, or for kto rows with labels.

    Measures rewards against the model that the run started from, and log-probs of the responses.

    Args:
        cfg: of the run; `model.path` is its result, `data.eval` the rows.
        stage: names the shipped rows, and stands in errors.

    Raises:
        ConfigError: it is not known what the policy started from.
        DataError: the rows cannot be read, or are of one class only.
    """
    require_reference(cfg)
    tokenizer = load_tokenizer(cfg.model)
    loaded = load_held_out(cfg, stage, tokenizer, records_of(cfg))
    examples = unpaired_examples(loaded, "held-out") if cfg.unpaired else loaded[0]
    return partial(_measure, cfg, tokenizer, loaded, examples)


def _measure(
    cfg: DPOConfig, tokenizer: Any, loaded: Loaded, examples: Examples, ctx: RunContext
) -> list[Measured]:
    columns = evaluate_against_reference(cfg, examples, tokenizer, ctx, cfg.ld_alpha)
    reward = cfg.beta * (columns["logp"] - columns["reference"])
    said = preference_logprob_metrics(
        {**columns, "logp": columns["plain"]}, loaded[0], loaded[1].kind
    )
    if cfg.unpaired:
        return [*reward_separation(reward, examples.columns["score"]), *said]
    chosen, rejected = reward[0::2], reward[1::2]
    return [
        *(_of_rewards(one) for one in agreement(chosen, rejected)),
        Measured("rewards/margins", (chosen - rejected,)),
        Measured("rewards/chosen", (chosen,)),
        Measured("rewards/rejected", (rejected,)),
        *said,
    ]


def _of_rewards(one: Measured) -> Measured:
    """Under the name that training has for it."""
    return replace(one, metric="rewards/" + one.metric.replace("accuracy", "accuracies"))

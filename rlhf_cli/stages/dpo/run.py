"""Direct preference optimization: training, and evaluation of a finished run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_cli.context import RunContext
from rlhf_cli.data.dataset import LoadedExamples
from rlhf_cli.data.examples import Examples
from rlhf_cli.evaluation.intervals import Measurement
from rlhf_cli.evaluation.metrics import preference_accuracy
from rlhf_cli.models.load import LoadInputs, load_policy
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.stages.dpo.config import DPOConfig
from rlhf_cli.stages.dpo.loss import kto_row_loss, preference_loss, reference_state
from rlhf_cli.stages.dpo.online_run import run_online
from rlhf_cli.stages.evaluation import (
    Evaluation,
    evaluate_against_reference,
    load_held_out,
    preference_logprob_metrics,
    require_reference,
)
from rlhf_cli.stages.examples import kto_examples, unpaired_examples
from rlhf_cli.stages.prepare_data import load_stage_data, prepare_rows, untransformed
from rlhf_cli.stages.records import records_of, rows_stage
from rlhf_cli.stages.reference import load_row_reference
from rlhf_cli.stages.rollouts.evaluate import open_evaluation as open_prompt_evaluation
from rlhf_cli.stages.training import open_run, prepare_training, train_and_save
from rlhf_cli.stages.unpaired import reward_separation


def prepare(cfg: DPOConfig, out: Path) -> None:
    """Tokenize before several processes start; there are no rows to tokenize online."""
    if not cfg.online:
        prepare_rows(cfg, out, "dpo", records_of("dpo", cfg))


def run(cfg: DPOConfig, out: Path) -> dict[str, Any]:
    """Train on pairs of a chosen and a rejected response, or with kto on labelled responses.

    With `online` the pairs are responses of the policy, ranked by their scores.
    """
    if cfg.online:
        return run_online(cfg, out)
    ctx = open_run(cfg, out)
    transform = partial(kto_examples, max_length=cfg.data.max_length)
    data = load_stage_data(
        cfg, ctx, "dpo", records_of("dpo", cfg), transform if cfg.unpaired else untransformed
    )
    policy = load_policy(cfg, LoadInputs(data.tokenizer, ctx, data.new_tokens))
    data.require_fits(policy)
    plan = prepare_training(cfg, ctx, policy, data)
    reference, data = load_row_reference(cfg, plan, policy, data, cfg.ld_alpha)
    loss = (kto_row_loss if cfg.unpaired else preference_loss)(cfg, policy, reference)
    state = reference_state(cfg, policy, reference)
    return train_and_save(plan, policy, loss, data, state=state)


def open_evaluation(cfg: DPOConfig, stage: str) -> Evaluation:
    """Load the held-out rows: pairs, labelled rows for kto, or prompts of an online run.

    The evaluation computes implicit rewards against the reference, and log-probs of the responses.

    Args:
        cfg: configuration of the run; `model.path` is its result, `data.eval` the rows.
        stage: names the shipped rows, and stands in errors.

    Raises:
        ConfigError: the model that the policy started from is unknown.
        DataError: the rows cannot be read, or are of one class only.
    """
    if cfg.online:
        return open_prompt_evaluation(cfg, rows_stage(stage, cfg))
    require_reference(cfg)
    tokenizer = load_tokenizer(cfg.model)
    loaded = load_held_out(cfg, stage, tokenizer, records_of("dpo", cfg))
    examples = unpaired_examples(loaded, "held-out") if cfg.unpaired else loaded[0]
    return partial(_measure, cfg, tokenizer, loaded, examples)


def _measure(
    cfg: DPOConfig, tokenizer: Any, loaded: LoadedExamples, examples: Examples, ctx: RunContext
) -> list[Measurement]:
    columns = evaluate_against_reference(cfg, examples, tokenizer, ctx, cfg.ld_alpha)
    reward = cfg.beta * (columns["logp"] - columns["reference"])
    logprob_metrics = preference_logprob_metrics(
        {**columns, "logp": columns["plain"]}, loaded[0], loaded[1].kind
    )
    if cfg.unpaired:
        return [*reward_separation(reward, examples.columns["score"]), *logprob_metrics]
    chosen, rejected = reward[0::2], reward[1::2]
    return [
        *(_as_training_metric(one) for one in preference_accuracy(chosen, rejected)),
        Measurement("rewards/margins", (chosen - rejected,)),
        Measurement("rewards/chosen", (chosen,)),
        Measurement("rewards/rejected", (rejected,)),
        *logprob_metrics,
    ]


def _as_training_metric(one: Measurement) -> Measurement:
    """Rename a metric as in training."""
    return replace(one, metric="rewards/" + one.metric.replace("accuracy", "accuracies"))

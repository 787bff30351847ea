"""Evaluation of saved models on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlhf_cli.console import logger
from rlhf_cli.context import RunContext, memory_device
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.dataset import LoadedExamples, load_eval_examples
from rlhf_cli.data.examples import Examples, rows_of
from rlhf_cli.errors import ConfigError, DataError
from rlhf_cli.evaluation.intervals import Measurement, Values, pooled_proportion
from rlhf_cli.evaluation.metrics import (
    metrics_by_label,
    preference_accuracy,
    ranking_accuracy,
    spearman,
)
from rlhf_cli.memory.inference import fit_tokens
from rlhf_cli.memory.phase import phase
from rlhf_cli.memory.training import MOST_TOKENS
from rlhf_cli.models.config import AdapterConfig, ComparedModelConfig, TrainedModelConfig
from rlhf_cli.models.load import LoadInputs, load_frozen
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.models.vocabulary import require_embedded
from rlhf_cli.models.wrapper import ModelWrapper, without_dropout
from rlhf_cli.progress import ProgressCount
from rlhf_cli.stages.config import StageConfig
from rlhf_cli.stages.examples import require_one_kind
from rlhf_cli.stages.prepare_data import log_max_length, require_positions
from rlhf_cli.stages.records import PREFERENCE_RECORDS
from rlhf_cli.stages.tokenizers import log_plain_text
from rlhf_cli.train.evaluation import compute_row_values
from rlhf_cli.train.row_loss import RowValues, row_logprobs, row_tokens

Columns = dict[str, NDArray[np.float64]]

Evaluation = Callable[[RunContext], list[Measurement]]
"""Loads a model and evaluates it on rows that were loaded before."""


def load_held_out(
    cfg: StageConfig, stage: str, tokenizer: Any, records: tuple[type, ...]
) -> LoadedExamples:
    """Load the examples of `data.eval`.

    Raises:
        DataError: there are none, or the stage does not read such rows.
    """
    log_max_length(cfg.data, cfg.model)
    loaded = load_eval_examples(cfg.data, stage, tokenizer, records, as_messages=cfg.as_messages)
    if loaded is None:
        raise DataError(
            f"data.path: none given, and {cfg.model.path} held out no rows. Try data=FILE"
        )
    log_plain_text(cfg, tokenizer, loaded[1])
    return loaded


@phase("evaluate")
def evaluate_rows(
    values: Callable[[TokenBatch], RowValues],
    model: ModelWrapper,
    examples: Examples,
    cfg: StageConfig,
    ctx: RunContext,
) -> Columns:
    """Compute values of each row with a frozen model: name -> [R], in the order of the rows.

    Args:
        values: computes the values of a micro-batch on the model's device.
        model: a frozen model.
        examples: the whole data set.
        cfg: `train.micro_batch_tokens`; with 0 it is chosen.
        ctx: device and compute type.

    Raises:
        ConfigError: rows are longer than the model's positions.
        DataError: rows hold token ids that the model does not embed.
    """
    require_positions(examples, model)
    require_embedded(examples, model.model)
    tokens = cfg.train.micro_batch_tokens or _fit_tokens(cfg, examples, ctx)
    progress = ProgressCount("rows", len(examples.row_starts) - 1)

    def counted(rows: TokenBatch) -> RowValues:
        found = values(rows)
        progress.add(len(rows.lengths))
        return found

    with torch.no_grad(), without_dropout(model), progress:
        found, _ = compute_row_values(counted, examples, tokens, ctx.device)
    return {name: column.double().numpy() for name, column in found.items()}


def _fit_tokens(cfg: StageConfig, examples: Examples, ctx: RunContext) -> int:
    """Most tokens of a forward pass that fit the device."""
    device = memory_device(ctx.device, ctx.compute, cfg.device_memory)
    try:
        return fit_tokens(cfg, ctx.compute.itemsize, rows_of(examples), device)
    except ConfigError:  # a model that transformers loads and the memory model cannot count
        return MOST_TOKENS[device.kind]


def evaluate_against_reference(
    cfg: StageConfig, examples: Examples, tokenizer: Any, ctx: RunContext, ld_alpha: float = 1.0
) -> Columns:
    """Log-probs of each row's response under a saved policy and its reference, [R] each.

    `logp` and `reference` are what the loss compares, nats; `plain` is the sum of the policy's
    log-probs, which differs from `logp` with `ld_alpha` below 1; `tokens` is the number of tokens.

    The models are loaded one after the other, so that memory holds one.

    Args:
        cfg: configuration of the run that made the policy; `model.reference` is a path or `none`.
        examples: held-out examples.
        tokenizer: tokenizer of both models.
        ctx: device and compute type.
        ld_alpha: as in `row_logprobs`.

    Raises:
        ConfigError: the model that the policy started from is unknown.
    """
    model = require_reference(cfg)
    own = _log_probs(cfg, examples, tokenizer, ctx, ld_alpha)
    if model.reference == "none":
        return own | {"reference": np.zeros_like(own["logp"])}
    logger.info(f"reference: {model.reference}")
    reference = replace(
        cfg, model=TrainedModelConfig(path=model.reference), adapter=AdapterConfig()
    )
    theirs = _log_probs(reference, examples, tokenizer, ctx, ld_alpha)
    return own | {"reference": theirs["logp"]}


def require_reference(cfg: StageConfig) -> ComparedModelConfig:
    """Return `cfg.model`, and check that it names a reference.

    Raises:
        ConfigError: the model that the policy started from is unknown.
    """
    model = cfg.model
    assert isinstance(model, ComparedModelConfig)
    if not model.reference:
        raise ConfigError(
            f"reference: the model that {model.path} started from is gone, so there is nothing to "
            "compare with. Try reference=FOLDER_OR_HUB_ID"
        )
    return model


def _log_probs(
    cfg: StageConfig, examples: Examples, tokenizer: Any, ctx: RunContext, ld_alpha: float
) -> Columns:
    policy = load_frozen(Policy, cfg, LoadInputs(tokenizer, ctx))

    def values(rows: TokenBatch) -> RowValues:
        out = policy(rows)
        return {
            "logp": row_logprobs(out, rows, ld_alpha),
            "plain": row_logprobs(out, rows),
            "tokens": row_tokens(rows),
        }

    return evaluate_rows(values, policy, examples, cfg, ctx)


def open_preference_evaluation(cfg: StageConfig, stage: str) -> Evaluation:
    """Load preference data; the evaluation compares log-probs of responses with their labels.

    Args:
        cfg: configuration of the run; `model.path` is its result, `data.eval` the rows. Only tokens
            of responses count, whatever the model was trained on.
        stage: names the shipped rows, and stands in errors.

    Raises:
        DataError: the rows cannot be read, or are of several kinds.
    """
    cfg = replace(cfg, data=replace(cfg.data, train_on="response", packing=False))
    tokenizer = load_tokenizer(cfg.model)
    loaded = load_held_out(cfg, stage, tokenizer, PREFERENCE_RECORDS)
    require_one_kind(loaded[1].kind)
    return partial(_measure, cfg, tokenizer, loaded)


def _measure(
    cfg: StageConfig, tokenizer: Any, loaded: LoadedExamples, ctx: RunContext
) -> list[Measurement]:
    policy = load_frozen(Policy, cfg, LoadInputs(tokenizer, ctx))

    def values(rows: TokenBatch) -> RowValues:
        return {"logp": row_logprobs(policy(rows), rows), "tokens": row_tokens(rows)}

    columns = evaluate_rows(values, policy, loaded[0], cfg, ctx)
    return preference_logprob_metrics(columns, loaded[0], loaded[1].kind)


def preference_logprob_metrics(
    columns: Columns, examples: Examples, kind: str
) -> list[Measurement]:
    """Agreement of response log-probs with preferences, rankings, labels or scores.

    Args:
        columns: `logp` (nats) and `tokens` of each row's response, [R] each.
        examples: the rows; column `score` holds the margin, rank score, label or score of each.
        kind: of the records: `preference`, `ranked`, `labelled` or `scored`.

    Returns:
        Metrics of log-probs summed over a response (`logps/`), and of their mean per token
        (`logps_per_token/`).
    """
    logp, tokens = columns["logp"], columns["tokens"]
    both = {"logps": logp, "logps_per_token": logp / tokens}
    return [
        replace(one, metric=f"{name}/{one.metric}")
        for name, values in both.items()
        for one in _metrics_of_kind(values, examples, kind)
    ]


def _metrics_of_kind(values: Values, examples: Examples, kind: str) -> Iterator[Measurement]:
    target = examples.columns["score"].astype(np.float64)
    if kind == "preference":
        chosen, rejected = values[0::2], values[1::2]
        yield from (
            replace(one, metric=one.metric.replace("accuracy", "accuracies"))
            for one in preference_accuracy(chosen, rejected)
        )
        yield Measurement("margins", (chosen - rejected,))
        yield Measurement("chosen", (chosen,))
        yield Measurement("rejected", (rejected,))
    elif kind == "ranked":
        right, pairs, _ = ranking_accuracy(values, target, examples.example_starts)
        yield pooled_proportion("accuracies", right, pairs)
    elif kind.startswith("labelled"):
        yield from metrics_by_label(values, target)
    else:
        yield Measurement("rank_correlation", (values, target), spearman)

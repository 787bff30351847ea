"""Evaluation of saved models on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlhf_cli.context import RunContext, say
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.examples import Examples, Loaded, load_eval_examples
from rlhf_cli.data.progress import ProgressCount
from rlhf_cli.data.records.record import (
    LabelledRecord,
    PreferenceRecord,
    RankedRecord,
    ScoredRecord,
)
from rlhf_cli.errors import ConfigError, DataError
from rlhf_cli.evaluation.bootstrap import Values
from rlhf_cli.evaluation.measured import Measured, share_of_parts
from rlhf_cli.evaluation.ranking import agreement, by_label, ranking_agreement, spearman
from rlhf_cli.models.config import AdapterConfig, ComparedModelConfig, TrainedModelConfig
from rlhf_cli.models.load import load_frozen
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.models.vocabulary import require_embedded
from rlhf_cli.models.wrapper import ModelWrapper, without_dropout
from rlhf_cli.stages.config import StageConfig
from rlhf_cli.stages.prepare_data import require_positions, say_max_length, say_plain_text
from rlhf_cli.stages.unpaired import require_one_kind
from rlhf_cli.train.evaluation import compute_row_values
from rlhf_cli.train.row_loss import RowValues, row_logprobs, row_tokens
from rlhf_cli.train.throughput import fit_micro_batch_tokens

Columns = dict[str, NDArray[np.float64]]

Evaluation = Callable[[RunContext], list[Measured]]
"""Loads a model and measures it on rows that are open already."""


def load_held_out(
    cfg: StageConfig, stage: str, tokenizer: Any, records: tuple[type, ...]
) -> Loaded:
    """The examples of `data.eval`.

    Raises:
        DataError: there are none, or they are not what the stage takes.
    """
    say_max_length(cfg)
    loaded = load_eval_examples(cfg.data, stage, tokenizer, records, as_messages=cfg.as_messages)
    if loaded is None:
        raise DataError(
            f"data.path: none given, and {cfg.model.path} held out no rows. Try data=FILE"
        )
    say_plain_text(cfg, tokenizer, loaded[1])
    return loaded


def evaluate_rows(
    values: Callable[[TokenBatch], RowValues],
    model: ModelWrapper,
    examples: Examples,
    cfg: StageConfig,
    ctx: RunContext,
) -> Columns:
    """Name -> [R], what a model gives each row, in the order of the rows.

    Args:
        values: of a micro-batch, on the model's device.
        model: frozen.
        examples: of a whole data set.
        cfg: `train.micro_batch_tokens`; 0 finds it.
        ctx: the compute type.

    Raises:
        ConfigError: rows are longer than the model's positions.
        DataError: rows hold ids that the model does not embed.
    """
    require_positions(examples, model)
    require_embedded(examples, model.model)
    shape = model.model.config.get_text_config()
    tokens = cfg.train.micro_batch_tokens or fit_micro_batch_tokens(
        model, shape, ctx.device, ctx.compute, recompute=True
    )
    progress = ProgressCount("rows", len(examples.row_starts) - 1)

    def counted(rows: TokenBatch) -> RowValues:
        found = values(rows)
        progress.add(len(rows.lengths))
        return found

    with torch.no_grad(), without_dropout(model), progress:
        found, _ = compute_row_values(counted, examples, tokens, ctx.device)
    return {name: column.double().numpy() for name, column in found.items()}


def evaluate_against_reference(
    cfg: StageConfig, examples: Examples, tokenizer: Any, ctx: RunContext, ld_alpha: float = 1.0
) -> Columns:
    """Numbers of each row's response, [R] each.

    `logp` and `reference` are what the loss compares, nats; `plain` is the sum of the policy's
    log-probs, which differs from `logp` with `ld_alpha` below 1; `tokens` is the count.

    One model is held after the other, never both.

    Args:
        cfg: of the run that made the policy; `model.reference` is a path, or `none`.
        examples: held-out.
        tokenizer: of both models.
        ctx: device and compute type.
        ld_alpha: as in `row_logprobs`.

    Raises:
        ConfigError: it is not known what the policy started from.
    """
    model = require_reference(cfg)
    own = _log_probs(cfg, examples, tokenizer, ctx, ld_alpha)
    if model.reference == "none":
        return own | {"reference": np.zeros_like(own["logp"])}
    say(f"reference: {model.reference}")
    held = replace(cfg, model=TrainedModelConfig(path=model.reference), adapter=AdapterConfig())
    theirs = _log_probs(held, examples, tokenizer, ctx, ld_alpha)
    return own | {"reference": theirs["logp"]}


def require_reference(cfg: StageConfig) -> ComparedModelConfig:
    """The model of a run that says what it is compared with.

    Raises:
        ConfigError: it is not known what the policy started from.
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
    policy = load_frozen(Policy, cfg, tokenizer, ctx)

    def values(rows: TokenBatch) -> RowValues:
        out = policy(rows)
        return {
            "logp": row_logprobs(out, rows, ld_alpha),
            "plain": row_logprobs(out, rows),
            "tokens": row_tokens(rows),
        }

    return evaluate_rows(values, policy, examples, cfg, ctx)


PREFERENCE_RECORDS: tuple[type, ...] = (
    PreferenceRecord,
    RankedRecord,
    ScoredRecord,
    LabelledRecord,
)


def open_preference_evaluation(cfg: StageConfig, stage: str) -> Evaluation:
    """Open the held-out rows; measures a saved model by the log-probs of their responses.

    Args:
        cfg: of the run that made the model; `model.path` is its result, `data.eval` the rows. Every
            model is measured on the responses alone, whatever it was trained on.
        stage: names the shipped rows, and stands in errors.

    Raises:
        DataError: the rows cannot be read, or are of several kinds.
    """
    cfg = replace(cfg, data=replace(cfg.data, train_on="response", packing=False))
    tokenizer = load_tokenizer(cfg.model)
    loaded = load_held_out(cfg, stage, tokenizer, PREFERENCE_RECORDS)
    require_one_kind(loaded[1].kind)
    return partial(_measure, cfg, tokenizer, loaded)


def _measure(cfg: StageConfig, tokenizer: Any, loaded: Loaded, ctx: RunContext) -> list[Measured]:
    policy = load_frozen(Policy, cfg, tokenizer, ctx)

    def values(rows: TokenBatch) -> RowValues:
        return {"logp": row_logprobs(policy(rows), rows), "tokens": row_tokens(rows)}

    columns = evaluate_rows(values, policy, loaded[0], cfg, ctx)
    return preference_logprob_metrics(columns, loaded[0], loaded[1].kind)


def preference_logprob_metrics(columns: Columns, examples: Examples, kind: str) -> list[Measured]:
    """How log-probs of responses agree with what was judged of them.

    Args:
        columns: `logp` (nats) and `tokens` of each row's response, [R] each.
        examples: the rows, with what was judged of each as the column `score`.
        kind: of the records: `preference`, `ranked`, `labelled` or `scored`.

    Returns:
        Metrics of the sum over a response's tokens (`logps/`), and of their mean
        (`logps_per_token/`).
    """
    logp, tokens = columns["logp"], columns["tokens"]
    both = {"logps": logp, "logps_per_token": logp / tokens}
    return [
        replace(one, metric=f"{name}/{one.metric}")
        for name, values in both.items()
        for one in _of_kind(values, examples, kind)
    ]


def _of_kind(values: Values, examples: Examples, kind: str) -> Iterator[Measured]:
    said = examples.columns["score"].astype(np.float64)
    if kind == "preference":
        chosen, rejected = values[0::2], values[1::2]
        yield from (
            replace(one, metric=one.metric.replace("accuracy", "accuracies"))
            for one in agreement(chosen, rejected)
        )
        yield Measured("margins", (chosen - rejected,))
        yield Measured("chosen", (chosen,))
        yield Measured("rejected", (rejected,))
    elif kind == "ranked":
        right, pairs, _ = ranking_agreement(values, said, examples.example_starts)
        yield share_of_parts("accuracies", right, pairs)
    elif kind.startswith("labelled"):
        yield from by_label(values, said)
    else:
        yield Measured("rank_correlation", (values, said), spearman)

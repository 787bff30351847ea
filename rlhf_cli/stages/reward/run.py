"""Reward model: training, and evaluation of a finished run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.console import logger
from rlhf_cli.context import RunContext
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.dataset import LoadedExamples
from rlhf_cli.data.examples import Examples
from rlhf_cli.evaluation.intervals import Measurement, pooled_proportion, proportion
from rlhf_cli.evaluation.metrics import (
    accuracy_by_quantile,
    auc,
    expected_calibration_error,
    length_baselines,
    length_warning,
    pair_confidence,
    pearson,
    preference_accuracy,
    ranking_accuracy,
    reliability_curve,
    spearman,
)
from rlhf_cli.models.load import LoadInputs, load_frozen, load_reward_model
from rlhf_cli.models.reward_model import RewardModel
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.stages.evaluation import (
    Evaluation,
    evaluate_rows,
    load_held_out,
)
from rlhf_cli.stages.prepare_data import load_stage_data, prepare_rows
from rlhf_cli.stages.records import PREFERENCE_RECORDS
from rlhf_cli.stages.reward.config import RewardConfig
from rlhf_cli.stages.reward.loss import reward_loss
from rlhf_cli.stages.training import open_run, prepare_training, train_and_save
from rlhf_cli.train.row_loss import RowValues


def prepare(cfg: RewardConfig, out: Path) -> None:
    """Tokenize before several processes start."""
    prepare_rows(cfg, out, "reward", PREFERENCE_RECORDS)


def run(cfg: RewardConfig, out: Path) -> dict[str, Any]:
    """Train a model to score responses, on pairs, rankings, scores or labels."""
    ctx = open_run(cfg, out)
    data = load_stage_data(cfg, ctx, "reward", PREFERENCE_RECORDS)
    model = load_reward_model(cfg, LoadInputs(data.tokenizer, ctx, data.new_tokens))
    data.require_fits(model)
    plan = prepare_training(cfg, ctx, model, data)
    loss = reward_loss(cfg, model, data.report.kind)
    return train_and_save(plan, model, loss, data)


Numbers = NDArray[np.float64]


def open_evaluation(cfg: RewardConfig, stage: str) -> Evaluation:
    """Load the held-out rows; the evaluation compares the model's scores with their labels.

    Args:
        cfg: configuration of the run; `model.path` is its result, `data.eval` the rows.
        stage: names the shipped rows, and stands in errors.
    """
    tokenizer = load_tokenizer(cfg.model)
    loaded = load_held_out(cfg, stage, tokenizer, PREFERENCE_RECORDS)
    return partial(_measure, cfg, tokenizer, loaded)


def _measure(
    cfg: RewardConfig, tokenizer: Any, loaded: LoadedExamples, ctx: RunContext
) -> list[Measurement]:
    examples, report = loaded
    model = load_frozen(RewardModel, cfg, LoadInputs(tokenizer, ctx))

    def values(rows: TokenBatch) -> RowValues:
        return {"score": model(rows)}

    scores = evaluate_rows(values, model, examples, cfg, ctx)["score"]
    target = examples.columns["score"].astype(np.float64)
    length = response_lengths(examples)
    if "preference" in report.kind:
        found = list(_pair_metrics(scores, target, length))
    elif "ranked" in report.kind:
        found = list(_ranking_metrics(scores, target, examples))
    elif "labelled" in report.kind:
        found = list(_label_metrics(scores, target))
    else:
        found = list(_score_metrics(scores, target))
    warning = length_warning(float(pearson(scores, length)))
    if warning:
        logger.info(warning)
    return [*found, Measurement("correlation with length", (scores, length), pearson)]


def response_lengths(examples: Examples) -> Numbers:
    """[R]: number of tokens of each row's response."""
    return np.add.reduceat(examples.loss_mask.astype(np.float64), examples.row_starts[:-1])


def _pair_metrics(scores: Numbers, margin: Numbers, length: Numbers) -> Iterator[Measurement]:
    chosen, rejected = scores[0::2], scores[1::2]
    yield from preference_accuracy(chosen, rejected)
    yield from length_baselines(length[0::2], length[1::2])
    yield Measurement("margin", (chosen - rejected,))
    right = (np.sign(chosen - rejected) + 1) / 2
    if margin.any():
        yield from accuracy_by_quantile("accuracy, margin", margin[0::2], right)
    yield from accuracy_by_quantile(
        "accuracy, chosen longer by", length[0::2] - length[1::2], right
    )
    confidence, came_true = pair_confidence(chosen, rejected)
    yield from (found.observed for found in reliability_curve(confidence, came_true, low=0.5))
    yield Measurement("calibration error", (confidence, came_true), _pair_error)


def _pair_error(confidence: Numbers, came_true: Numbers) -> object:
    return expected_calibration_error(confidence, came_true, low=0.5)


def _ranking_metrics(scores: Numbers, target: Numbers, examples: Examples) -> Iterator[Measurement]:
    right, pairs, best = ranking_accuracy(scores, target, examples.example_starts)
    yield pooled_proportion("accuracy", right, pairs)
    yield proportion("best of each prompt", best)


def _label_metrics(scores: Numbers, label: Numbers) -> Iterator[Measurement]:
    yield proportion("accuracy", (scores > 0) == (label > 0.5))
    yield Measurement("auc", (scores, label), auc)
    chance = 1 / (1 + np.exp(-scores))
    yield from (found.observed for found in reliability_curve(chance, label))
    yield Measurement("calibration error", (chance, label), expected_calibration_error)


def _score_metrics(scores: Numbers, target: Numbers) -> Iterator[Measurement]:
    yield Measurement("absolute error", (np.abs(scores - target),))
    yield Measurement("correlation", (scores, target), pearson)
    yield Measurement("rank correlation", (scores, target), spearman)

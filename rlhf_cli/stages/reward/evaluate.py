"""What a run of reward made, measured on held-out rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.context import RunContext, say
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.examples import Examples, Loaded
from rlhf_cli.evaluation.calibration import calibration_error, pair_confidence, reliability
from rlhf_cli.evaluation.measured import Measured, share_of, share_of_parts
from rlhf_cli.evaluation.ranking import (
    accuracy_by,
    agreement,
    auc,
    length_baselines,
    length_warning,
    pearson,
    ranking_agreement,
    spearman,
)
from rlhf_cli.models.load import LoadInputs, load_frozen
from rlhf_cli.models.reward_model import RewardModel
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.stages.held_out import Evaluation, numbers_of_rows, open_held_out
from rlhf_cli.stages.reward.config import RewardConfig
from rlhf_cli.stages.reward.run import RECORDS
from rlhf_cli.train.row_loss import RowValues

Numbers = NDArray[np.float64]


def open_evaluation(cfg: RewardConfig, stage: str) -> Evaluation:
    """Open the held-out rows; measures how well scores agree with what was judged of them.

    Args:
        cfg: of the run; `model.path` is its result, `data.eval` the rows.
        stage: names the shipped rows, and stands in errors.
    """
    tokenizer = load_tokenizer(cfg.model)
    loaded = open_held_out(cfg, stage, tokenizer, RECORDS)
    return partial(_measure, cfg, tokenizer, loaded)


def _measure(cfg: RewardConfig, tokenizer: Any, loaded: Loaded, ctx: RunContext) -> list[Measured]:
    examples, report = loaded
    model = load_frozen(RewardModel, cfg, LoadInputs(tokenizer, ctx))

    def values(rows: TokenBatch) -> RowValues:
        return {"score": model(rows)}

    scores = numbers_of_rows(values, model, examples, cfg, ctx)["score"]
    said = examples.columns["score"].astype(np.float64)
    length = response_lengths(examples)
    if "preference" in report.kind:
        found = list(_of_pairs(scores, said, length))
    elif "ranked" in report.kind:
        found = list(_of_rankings(scores, said, examples))
    elif "labelled" in report.kind:
        found = list(_of_labels(scores, said))
    else:
        found = list(_of_scores(scores, said))
    warning = length_warning(float(pearson(scores, length)))
    if warning:
        say(warning)
    return [*found, Measured("correlation with length", (scores, length), pearson)]


def response_lengths(examples: Examples) -> Numbers:
    """[R]: tokens of each row's response."""
    return np.add.reduceat(examples.trained.astype(np.float64), examples.row_starts[:-1])


def _of_pairs(scores: Numbers, margin: Numbers, length: Numbers) -> Iterator[Measured]:
    chosen, rejected = scores[0::2], scores[1::2]
    yield from agreement(chosen, rejected)
    yield from length_baselines(length[0::2], length[1::2])
    yield Measured("margin", (chosen - rejected,))
    right = (np.sign(chosen - rejected) + 1) / 2
    if margin.any():
        yield from accuracy_by("accuracy, margin", margin[0::2], right)
    yield from accuracy_by("accuracy, chosen longer by", length[0::2] - length[1::2], right)
    confidence, came_true = pair_confidence(chosen, rejected)
    yield from (found.observed for found in reliability(confidence, came_true, low=0.5))
    yield Measured("calibration error", (confidence, came_true), _pair_error)


def _pair_error(confidence: Numbers, came_true: Numbers) -> object:
    return calibration_error(confidence, came_true, low=0.5)


def _of_rankings(scores: Numbers, said: Numbers, examples: Examples) -> Iterator[Measured]:
    right, pairs, best = ranking_agreement(scores, said, examples.example_starts)
    yield share_of_parts("accuracy", right, pairs)
    yield share_of("best of each prompt", best)


def _of_labels(scores: Numbers, label: Numbers) -> Iterator[Measured]:
    yield share_of("accuracy", (scores > 0) == (label > 0.5))
    yield Measured("auc", (scores, label), auc)
    chance = 1 / (1 + np.exp(-scores))
    yield from (found.observed for found in reliability(chance, label))
    yield Measured("calibration error", (chance, label), calibration_error)


def _of_scores(scores: Numbers, said: Numbers) -> Iterator[Measured]:
    yield Measured("absolute error", (np.abs(scores - said),))
    yield Measured("correlation", (scores, said), pearson)
    yield Measured("rank correlation", (scores, said), spearman)

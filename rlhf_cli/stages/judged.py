"""What a language model's log-probs say of judged responses: pairs, rankings, labels, scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from rlhf_cli.context import RunContext
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.examples import Examples, Loaded
from rlhf_cli.data.records.record import (
    LabelledRecord,
    PreferenceRecord,
    RankedRecord,
    ScoredRecord,
)
from rlhf_cli.evaluation.bootstrap import Values
from rlhf_cli.evaluation.measured import Measured, share_of_parts
from rlhf_cli.evaluation.ranking import agreement, by_label, ranking_agreement, spearman
from rlhf_cli.models.load import LoadInputs, load_frozen
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.stages.config import StageConfig
from rlhf_cli.stages.held_out import Columns, Evaluation, numbers_of_rows, open_held_out
from rlhf_cli.stages.labelled import require_one_kind
from rlhf_cli.train.row_loss import RowValues
from rlhf_cli.train.sequence import row_logprobs, row_tokens

RECORDS: tuple[type, ...] = (PreferenceRecord, RankedRecord, ScoredRecord, LabelledRecord)


def open_evaluation(cfg: StageConfig, stage: str) -> Evaluation:
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
    loaded = open_held_out(cfg, stage, tokenizer, RECORDS)
    require_one_kind(loaded[1].kind)
    return partial(_measure, cfg, tokenizer, loaded)


def _measure(cfg: StageConfig, tokenizer: Any, loaded: Loaded, ctx: RunContext) -> list[Measured]:
    policy = load_frozen(Policy, cfg, LoadInputs(tokenizer, ctx))

    def values(rows: TokenBatch) -> RowValues:
        return {"logp": row_logprobs(policy(rows), rows), "tokens": row_tokens(rows)}

    columns = numbers_of_rows(values, policy, loaded[0], cfg, ctx)
    return judged_logprobs(columns, loaded[0], loaded[1].kind)


def judged_logprobs(columns: Columns, examples: Examples, kind: str) -> list[Measured]:
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

"""Held-out rows and numbers of each of them, for evaluations outside of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlhf_cli.context import RunContext
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.dataset import LoadedExamples, load_eval_examples
from rlhf_cli.data.examples import Examples
from rlhf_cli.errors import DataError
from rlhf_cli.evaluation.measured import Measured
from rlhf_cli.models.vocabulary import require_embedded
from rlhf_cli.models.wrapper import ModelWrapper, without_dropout
from rlhf_cli.progress import ProgressCount
from rlhf_cli.stages.config import StageConfig
from rlhf_cli.stages.opening import say_max_length, say_plain_text
from rlhf_cli.stages.session import require_context
from rlhf_cli.train.budget import micro_batch_tokens
from rlhf_cli.train.measure import row_values
from rlhf_cli.train.row_loss import RowValues

Columns = dict[str, NDArray[np.float64]]

Evaluation = Callable[[RunContext], list[Measured]]
"""Loads a model and measures it on rows that are open already."""


def open_held_out(
    cfg: StageConfig, stage: str, tokenizer: Any, records: tuple[type, ...]
) -> LoadedExamples:
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


def numbers_of_rows(
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
    require_context(examples, model)
    require_embedded(examples, model.model)
    shape = model.model.config.get_text_config()
    tokens = cfg.train.micro_batch_tokens or micro_batch_tokens(
        model, shape, ctx.device, ctx.compute, recompute=True
    )
    progress = ProgressCount("rows", len(examples.row_starts) - 1)

    def counted(rows: TokenBatch) -> RowValues:
        found = values(rows)
        progress.add(len(rows.lengths))
        return found

    with torch.no_grad(), without_dropout(model), progress:
        found, _ = row_values(counted, examples, tokens, ctx.device)
    return {name: column.double().numpy() for name, column in found.items()}

"""Tokenizer and tokenized rows of a run, before a model is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_cli.config.rank_env import is_first_process
from rlhf_cli.console import logger, muted
from rlhf_cli.context import RunContext
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.dataset import (
    LoadedExamples,
    load_eval_examples,
    load_examples,
)
from rlhf_cli.data.examples import Examples, count_distinct
from rlhf_cli.data.preview import show_first_example
from rlhf_cli.data.report import DataReport
from rlhf_cli.errors import ConfigError
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.context_length import context_length
from rlhf_cli.models.tokenizer import trains_tokenizer
from rlhf_cli.models.vocabulary import require_embedded
from rlhf_cli.models.wrapper import ModelWrapper
from rlhf_cli.preflight.models import positions
from rlhf_cli.runs.run_files import TOKENIZER
from rlhf_cli.stages.config import StageConfig
from rlhf_cli.stages.records import Records
from rlhf_cli.stages.tokenizers import load_row_tokenizer, load_trained_tokenizer, log_plain_text

Transform = Callable[[LoadedExamples, str], Examples]
"""Makes a stage's examples of loaded rows; the second argument is `training` or `held-out`."""


@dataclass(frozen=True, kw_only=True)
class RunData:
    """Tokenizer of a run and the reports on its rows.

    Attributes:
        tokenizer: saved beside the result.
        report: on the training rows.
        held_out_report: on the held-out rows, or None.
    """

    tokenizer: Any
    report: DataReport
    held_out_report: DataReport | None = None

    def require_fits(self, model: ModelWrapper, name: str = "model") -> None:
        """Check that the run's rows fit a model; here there is no row yet.

        Args:
            model: reads the rows.
            name: of the model in messages.

        Raises:
            ConfigError: rows are longer than the model's positions.
            DataError: rows hold token ids that the model does not embed.
        """


@dataclass(frozen=True, kw_only=True)
class StageData(RunData):
    """Tokenizer and tokenized examples of a stage.

    Attributes:
        new_tokens: ids that were added to the tokenizer and that the model has never seen.
        train: training examples.
        held_out: held-out examples, or None.
    """

    new_tokens: tuple[int, ...]
    train: Examples
    held_out: Examples | None

    def map_examples(self, change: Callable[[Examples], Examples]) -> StageData:
        """The same data with changed examples: training examples first, then held-out ones."""
        train = change(self.train)
        held_out = None if self.held_out is None else change(self.held_out)
        return replace(self, train=train, held_out=held_out)

    def require_fits(self, model: ModelWrapper, name: str = "model") -> None:
        """Check that all rows fit a model's positions and embeddings."""
        for examples in (self.train, self.held_out):
            if examples is not None:
                require_positions(examples, model, name)
                require_embedded(examples, model.model, name)


def untransformed(loaded: LoadedExamples, role: str = "training") -> Examples:
    """The examples as they were loaded."""
    return loaded[0]


def load_stage_data(
    cfg: StageConfig,
    ctx: RunContext,
    stage: str,
    records: Records,
    transform: Transform = untransformed,
) -> StageData:
    """Load tokenizer and rows, make the stage's examples, and show the first one.

    Args:
        cfg: the whole configuration.
        ctx: the run folder, and whether several processes share it.
        stage: names the shipped rows, and stands in errors.
        records: record classes that the stage reads, the preferred first.
        transform: makes the stage's examples of those of the records.
    """
    loaded = load_rows(cfg, ctx, stage, records)
    train = transform((loaded.train, loaded.report), "training")
    if ctx.ranks.is_main:  # which writes the report; hashes of all rows take memory
        loaded.report.distinct = count_distinct(train)
    held_out = loaded.held_out
    if held_out is not None and loaded.held_out_report is not None:
        held_out = transform((held_out, loaded.held_out_report), "held-out")
    if cfg.log.preview:
        kind = loaded.report.kind if train is loaded.train else ""
        show_first_example(train, loaded.tokenizer, kind, full=cfg.log.samples == "full")
    return replace(loaded, train=train, held_out=held_out)


def load_rows(cfg: StageConfig, ctx: RunContext, stage: str, records: Records) -> StageData:
    """Load tokenizer and rows; with several processes, from what `prepare_rows` cached."""
    prepared = ctx.ranks.world_size > 1
    if prepared:
        cfg = _with_saved_tokenizer(cfg, ctx.out)
    # prepare_rows has already printed the report on these rows
    with muted() if prepared else contextlib.nullcontext():
        return _load(cfg, stage, records, cached_only=prepared)


def prepare_rows(cfg: StageConfig, out: Path, stage: str, records: Records) -> None:
    """Train the tokenizer and tokenize the rows once, before several processes start.

    Another rank than 0 does so for a machine with a cache of its own, and takes the tokenizer that
    rank 0 has trained.
    """
    if trains_tokenizer(cfg.model) and is_first_process():
        load_trained_tokenizer(cfg, stage, records).save_pretrained(out / TOKENIZER)
    cfg = _with_saved_tokenizer(cfg, out)
    _load(cfg, stage, records, cached_only=False)


def _load(cfg: StageConfig, stage: str, records: Records, *, cached_only: bool) -> StageData:
    log_max_length(cfg.data, cfg.model)
    tokenizer, new = load_row_tokenizer(cfg, stage, records)
    options = {"as_messages": cfg.as_messages, "cached_only": cached_only}
    train, report = load_examples(cfg.data, stage, tokenizer, records, cfg.seed, **options)
    log_plain_text(cfg, tokenizer, report)
    held_out = load_eval_examples(cfg.data, stage, tokenizer, records, **options)
    return StageData(
        tokenizer=tokenizer,
        new_tokens=new,
        train=train,
        report=report,
        held_out=held_out[0] if held_out else None,
        held_out_report=held_out[1] if held_out else None,
    )


def log_max_length(data: DataConfig, model: ModelConfig) -> None:
    """Say that `data.max_length` was lowered to the model's positions."""
    if data.max_length == positions(model):
        logger.info(f"data.max_length: {data.max_length}, the model's positions")


def require_positions(examples: Examples, model: ModelWrapper, name: str = "model") -> None:
    """Check that no row is longer than the model's positions.

    Args:
        examples: of a whole data set.
        model: reads their rows.
        name: of the model in the message.

    Raises:
        ConfigError: gives the number of such rows, and the limit to set.
    """
    longest = context_length(model.model)
    lengths = np.diff(examples.row_starts)
    if longest and lengths.max() > longest:
        raise ConfigError(
            f"data.max_length: {(lengths > longest).sum()} rows are longer than the {name}'s "
            f"{longest} positions (the longest has {lengths.max()} tokens). "
            f"Try data.max_length={longest}"
        )


def _with_saved_tokenizer(cfg: StageConfig, out: Path) -> StageConfig:
    if not trains_tokenizer(cfg.model):
        return cfg
    model = replace(cfg.model, tokenizer=str(out / TOKENIZER), tokenizer_vocab_size=0)
    return replace(cfg, model=model)

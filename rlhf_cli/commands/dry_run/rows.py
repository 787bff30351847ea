"""Rows of a dry run: tokenized as the run would, or estimated from the first of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.commands.dry_run.sample import SAMPLE_CHARACTERS, Sample, sample_rows
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.dataset import (
    entry_key,
    first_held_out_record_type,
    iter_texts,
    load_eval_examples,
    load_examples,
    tokenize_mixture,
)
from rlhf_cli.data.examples import Examples
from rlhf_cli.data.prompts import (
    PROMPT_RECORDS,
    PromptEncoder,
    encode_prompts,
    load_held_out_prompts,
    load_training_prompts,
    read_prompts,
)
from rlhf_cli.data.report import DataReport
from rlhf_cli.data.sources.base import DefaultSplit
from rlhf_cli.data.sources.mixture import open_training_data
from rlhf_cli.errors import DataError
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.resources import SHIPPED, cache_folder
from rlhf_cli.stages.config import StageConfig
from rlhf_cli.stages.examples import stage_examples
from rlhf_cli.stages.records import (
    LIKELIHOOD_RECORDS,
    PREFERENCE_RECORDS,
    Records,
    records_of,
)
from rlhf_cli.stages.rollouts.config import RolloutSettings
from rlhf_cli.stages.tokenizers import load_prompt_encoder

CACHED_BYTES = 256_000_000
"""Largest data whose fingerprint is computed, to find their tokens in the cache."""


@dataclass(frozen=True)
class RowFacts:
    """Rows of `data.path` or `data.eval`, or prompts, as a run reads them.

    Attributes:
        report: counts of the rows that were read.
        lengths: [R], tokens of each row that was read and kept.
        scored: tokens in the loss of these rows.
        items: examples or prompts of these rows.
        share: items of an epoch, for each one that was read; 1 where all were.
        rows: number of rows of all sources.
        examples: of the rows that were read; None for prompts.
        read: number of rows that were read; 0 if all were.
        characters: of these rows.
    """

    report: DataReport
    lengths: NDArray[np.int64]
    scored: int
    items: int
    share: float
    rows: int
    examples: Examples | None = None
    read: int = 0
    characters: int = 0

    @property
    def count(self) -> int:
        """Examples or prompts of an epoch."""
        return max(1, round(self.items * self.share))

    @property
    def tokens(self) -> int:
        """Tokens of an epoch."""
        return round(float(self.lengths.sum()) * self.share)

    @property
    def trained(self) -> int:
        """Tokens of an epoch that are in the loss."""
        return round(self.scored * self.share)

    @property
    def longest(self) -> int:
        """Tokens of the longest row that was read."""
        return int(self.lengths.max(initial=0))

    @property
    def mean(self) -> float:
        """Tokens of a row on average."""
        return float(self.lengths.mean()) if len(self.lengths) else 0.0


def first_texts(cfg: StageConfig, stage: str, records: Records) -> Iterator[str]:
    """Yield the first texts of the training rows, for training a tokenizer.

    A tokenizer of all rows gives other tokens, in about the same number.
    """
    left = SAMPLE_CHARACTERS
    for text in iter_texts(cfg.data, stage, records):
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


@dataclass(frozen=True)
class RunRows:
    """Training rows of a run, and its held-out rows or None."""

    train: RowFacts
    held_out: RowFacts | None


def load_stage_rows(cfg: StageConfig, stage: str, tokenizer: Any, records: Records) -> RunRows:
    """Tokenize the rows of a stage, from and to the cache as a run does; of large data a sample.

    Raises:
        DataError: the rows cannot be read, or the stage cannot use them.
    """
    data, options = cfg.data, {"as_messages": cfg.as_messages}
    sample = sample_rows(data, data.path, stage, "train")
    if sample.complete or _is_cached(cfg, stage, tokenizer, records, sample):
        loaded = load_examples(data, stage, tokenizer, records, cfg.seed, **options)
        train = _facts(stage_examples(stage, cfg, loaded), loaded[1], sample, exact=True)
    else:
        examples, report = tokenize_mixture(
            sample.mixture, data, stage, tokenizer, records, **options
        )
        rows = stage_examples(stage, cfg, (examples, report))
        train = _facts(rows, report, sample, exact=False)
        train = replace(train, share=train.share * _training_share(data, sample.rows))
    return RunRows(train, _held_out(cfg, stage, tokenizer, records, train))


def _held_out(
    cfg: StageConfig, stage: str, tokenizer: Any, records: Records, train: RowFacts | None
) -> RowFacts | None:
    data, options = cfg.data, {"as_messages": cfg.as_messages}
    if not data.holds_out:
        return None
    if isinstance(data.eval, int | float) and train is not None and train.read:
        left = _training_share(data, train.rows)
        return replace(train, share=train.share / left * (1 - left))
    sample = _held_out_sample(data, stage)
    if sample is None or sample.complete:
        loaded = load_eval_examples(data, stage, tokenizer, records, **options)
        assert loaded is not None
        rows = stage_examples(stage, cfg, loaded, "held-out")
        return _facts(rows, loaded[1], sample, exact=True)
    examples, report = tokenize_mixture(sample.mixture, data, stage, tokenizer, records, **options)
    rows = stage_examples(stage, cfg, (examples, report), "held-out")
    return _facts(rows, report, sample, exact=False)


def _held_out_sample(data: DataConfig, stage: str) -> Sample | None:
    """The first rows of `data.eval`; None where it holds out training rows, all of them read."""
    if isinstance(data.eval, int | float):
        return None
    given = SHIPPED if data.eval == "auto" else data.eval
    return sample_rows(data, given, stage, "test")


def _training_share(data: DataConfig, rows: int) -> float:
    """Share of the rows that `data.eval` leaves for training."""
    if isinstance(data.eval, int):
        return max(0.0, 1 - data.eval / max(rows, 1))
    return 1 - data.eval if isinstance(data.eval, float) else 1.0


def _is_cached(
    cfg: StageConfig, stage: str, tokenizer: Any, records: Records, sample: Sample
) -> bool:
    """Whether the tokens of all rows are in the cache; not looked up for very large data."""
    if sample.size > CACHED_BYTES or isinstance(cfg.data.eval, int | float):
        return False
    mixture = open_training_data(cfg.data, stage, cfg.seed)
    key = entry_key(mixture.fingerprint, tokenizer, cfg.data, records, as_messages=cfg.as_messages)
    return (cache_folder() / "tokens" / key).is_dir()


def _facts(
    examples: Examples, report: DataReport, sample: Sample | None, *, exact: bool
) -> RowFacts:
    return RowFacts(
        report,
        np.diff(examples.row_starts),
        int(examples.loss_mask.sum()),
        len(examples),
        share=1.0 if exact or sample is None else sample.share,
        rows=report.rows if exact or sample is None else sample.rows,
        examples=examples,
        read=0 if exact or sample is None else sample.read,
        characters=sample.characters if sample else 0,
    )


def load_held_out_rows(cfg: StageConfig, stage: str, *, given: bool) -> RowFacts:
    """Tokenize the rows that `rlhf evaluate` measures a model on; of large data the first ones.

    Args:
        cfg: configuration of the model's run; `data.eval` are the rows.
        stage: of that run.
        given: whether they were named; else they are the held-out rows of the run.

    Raises:
        DataError: there are none, or they cannot be read.
    """
    if not cfg.data.holds_out:
        raise DataError(
            f"data.path: none given, and {cfg.model.path} held out no rows. Try data=FILE"
        )
    own = LIKELIHOOD_RECORDS if stage in ("pretrain", "sft") else records_of(stage, cfg)
    records = _evaluated_records(cfg, stage, own) if given else own
    if records == PROMPT_RECORDS:
        encoder = load_prompt_encoder(cast(RolloutSettings, cfg))
        sample = _held_out_sample(cfg.data, "ppo") or sample_rows(
            cfg.data, cfg.data.path, "ppo", "train"
        )
        return _prompt_facts(cfg, encoder, sample, "test")
    tokenizer = load_tokenizer(cfg.model)
    kind = stage if records == own else "sft"
    facts = _held_out(cfg, kind, tokenizer, records, None)
    assert facts is not None
    return facts


def _evaluated_records(cfg: StageConfig, stage: str, own: Records) -> Records:
    """Record classes that named rows are read as, which a stage of another kind may have made."""
    if stage == "reward":
        return own
    others = [r for r in (*LIKELIHOOD_RECORDS, *PREFERENCE_RECORDS) if r not in own]
    found = first_held_out_record_type(cfg.data, stage, (*own, *others))
    if found is None or found in own:
        return own
    return PREFERENCE_RECORDS if found in PREFERENCE_RECORDS else LIKELIHOOD_RECORDS


def load_prompt_rows(cfg: Any, encoder: PromptEncoder) -> RunRows:
    """Encode the prompts of ppo; of large data the first ones.

    Raises:
        DataError: the rows cannot be read, or none has a prompt.
    """
    sample = sample_rows(cfg.data, cfg.data.path, "ppo", "train")
    train = _prompt_facts(cfg, encoder, sample, "train")
    if not cfg.data.holds_out:
        return RunRows(train, None)
    if isinstance(cfg.data.eval, int | float) and train.read:
        left = _training_share(cfg.data, train.rows)
        return RunRows(train, replace(train, share=train.share / left * (1 - left)))
    other = _held_out_sample(cfg.data, "ppo") or sample
    return RunRows(train, _prompt_facts(cfg, encoder, other, "test"))


def _prompt_facts(
    cfg: Any, encoder: PromptEncoder, sample: Sample, split: DefaultSplit
) -> RowFacts:
    if not sample.complete:
        found = read_prompts(sample.mixture, cfg.data, "ppo")
    elif split == "train":
        found = load_training_prompts(cfg.data, "ppo", cfg.seed)
    else:
        held_out = load_held_out_prompts(cfg.data, "ppo")
        assert held_out is not None
        found = held_out
    most = cfg.data.max_length - cfg.sampling.max_new_tokens
    prompts, tokens = encode_prompts(found, encoder, most, cfg.data.truncation)
    lengths = np.array([len(ids) for ids in tokens], np.int64)
    prompts.report.templated = encoder.used_template
    share = 1.0 if sample.complete else sample.share * _training_share(cfg.data, sample.rows)
    return RowFacts(
        prompts.report,
        lengths,
        0,
        len(tokens),
        share=share,
        rows=prompts.report.rows if sample.complete else sample.rows,
        read=0 if sample.complete else sample.read,
        characters=sample.characters,
    )

"""The data pipeline: open sources, read records, tokenize, cache.

`load_examples` and `load_eval_examples` run all steps; the other functions stop at the records.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from sys import maxsize
from typing import Any

import numpy as np
import tokenizers
import transformers

from rlhf_cli.cache import CacheEntry, load_entry, store_entry, tokenizer_state
from rlhf_cli.console import logger
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.examples import Examples, examples_from_arrays, examples_to_arrays, flatten
from rlhf_cli.data.records.fields import Message
from rlhf_cli.data.records.reader import RecordReader, RecordWithSource
from rlhf_cli.data.records.types import is_chat
from rlhf_cli.data.report import DataReport
from rlhf_cli.data.sources.base import RawRow
from rlhf_cli.data.sources.mixture import (
    Mixture,
    mix_training_rows,
    open_held_out_data,
    open_sources,
    open_training_data,
)
from rlhf_cli.data.tokens.record_tokenizer import RecordTokenizer
from rlhf_cli.errors import DataError
from rlhf_cli.progress import track
from rlhf_cli.resources import cache_folder

CACHE_VERSION = 10
"""Version of the cached arrays; raise it when the same rows give other tokens, masks or arrays."""

_NOT_IN_KEY = ("path", "eval", "shuffle", "name", "split", "data_dir", "format", "columns")
"""Keys of `data` that do not change the tokens of a row.

Those that select rows, or decide how they are read, are a part of the mixture's fingerprint.
"""

LoadedExamples = tuple[Examples, DataReport]


@dataclass(frozen=True)
class _Tokenization:
    """What decides the tokens of the rows of a mixture."""

    cfg: DataConfig
    stage: str
    tokenizer: Any
    allowed: tuple[type, ...]
    as_messages: bool


def load_examples(
    cfg: DataConfig,
    stage: str,
    tokenizer: Any,
    allowed: tuple[type, ...],
    seed: int = 0,
    *,
    as_messages: bool = False,
    cached_only: bool = False,
) -> LoadedExamples:
    """Load the training examples of a stage, from the cache if they are there.

    Args:
        cfg: data configuration.
        stage: name of the stage, which selects the shipped rows and is named in errors.
        tokenizer: fast tokenizer.
        allowed: record classes that the stage takes, the preferred first.
        seed: seed of the sampling from sources whose weight is not a whole number.
        as_messages: render text prompts and responses by the chat template; else they are
            concatenated as they are.
        cached_only: require cached tokens, as ranks do, whose rows were tokenized before they
            started.

    Raises:
        DataError: the rows cannot be read, the stage does not take them, or none is left.
        ModelError: the tokenizer lacks what the rows need.
    """
    mixture = open_training_data(cfg, stage, seed)
    how = _Tokenization(cfg, stage, tokenizer, allowed, as_messages)
    return _load(mixture, how, "training", cached_only)


def load_eval_examples(
    cfg: DataConfig,
    stage: str,
    tokenizer: Any,
    allowed: tuple[type, ...],
    *,
    as_messages: bool = False,
    cached_only: bool = False,
) -> LoadedExamples | None:
    """Load the held-out examples that `data.eval` names or counts; None if there are none.

    Arguments and errors are those of `load_examples`.
    """
    mixture = open_held_out_data(cfg, stage)
    if mixture is None:
        return None
    how = _Tokenization(cfg, stage, tokenizer, allowed, as_messages)
    return _load(mixture, how, "held-out", cached_only)


def _load(mixture: Mixture, how: _Tokenization, role: str, cached_only: bool) -> LoadedExamples:
    report = DataReport(mixture.files, sha256=mixture.fingerprint)
    record_tokenizer = RecordTokenizer(
        how.tokenizer, how.cfg, report, as_messages=how.as_messages
    )  # checks the tokenizer, also where the tokens are cached
    key = entry_key(report.sha256, how.tokenizer, how.cfg, how.allowed, as_messages=how.as_messages)
    entry = load_entry(key, verify=not cached_only)  # verified when it was put there
    if entry is not None:
        report = DataReport.from_dict(entry.facts)
        examples = examples_from_arrays(mixture.files, entry.arrays)
        logger.info(f"{mixture.label}: tokens from the cache ({key})")
    elif cached_only:
        raise DataError(
            f"{mixture.label}: its tokens are not in the cache ({cache_folder()}), where they were "
            "put before the ranks started; set RLHF_CACHE to a folder that all processes of this "
            "machine can use"
        )
    else:
        start = time.monotonic()
        examples = _build(mixture, how, record_tokenizer)
        logger.info(
            f"{mixture.label}: tokenized in {time.monotonic() - start:.1f} s (not in the cache)"
        )
        store_entry(key, CacheEntry(examples_to_arrays(examples), report.to_dict()))
    report.skipped_files = tuple(name for source in mixture.sources for name in source.skipped)
    report.sources, report.held_out = mixture.source_counts, mixture.held_out
    for line in report.lines(role):
        logger.info(line)
    return examples, report


def tokenize_mixture(
    mixture: Mixture,
    cfg: DataConfig,
    stage: str,
    tokenizer: Any,
    allowed: tuple[type, ...],
    *,
    as_messages: bool = False,
) -> LoadedExamples:
    """Tokenize the rows of a mixture, without the cache; the report has no fingerprint.

    Arguments and errors are those of `load_examples`.
    """
    report = DataReport(mixture.files)
    how = _Tokenization(cfg, stage, tokenizer, allowed, as_messages)
    tokenizer_of_records = RecordTokenizer(tokenizer, cfg, report, as_messages=as_messages)
    return _build(mixture, how, tokenizer_of_records), report


def _build(mixture: Mixture, how: _Tokenization, record_tokenizer: RecordTokenizer) -> Examples:
    """Read, tokenize and join all rows, and complete the report."""
    report = record_tokenizer.report
    size = sum(source.size for source in mixture.sources)
    with closing(track(mixture.rows(), size)) as rows:  # removes the bar before an error is shown
        records = read_records(mixture, how.cfg, how.stage, how.allowed, report, rows)
        examples = flatten(record_tokenizer.examples(records), mixture.files)
    report.require_kept()
    report.examples = len(examples)
    report.tokens = len(examples.tokens)
    report.trained_tokens = int(examples.loss_mask.sum())
    report.set_length_percentiles(np.diff(examples.row_starts))
    return examples


def entry_key(
    fingerprint: str,
    tokenizer: Any,
    cfg: DataConfig,
    allowed: tuple[type, ...],
    *,
    as_messages: bool = False,
) -> str:
    """Return the cache key of tokenized examples: a hash of all that their tokens depend on.

    Args:
        fingerprint: fingerprint of the mixture.
        tokenizer: its vocabulary, rules, special tokens and chat template count.
        cfg: data configuration.
        allowed: record classes that the stage takes.
        as_messages: render text prompts and responses by the chat template.
    """
    settings = {name: v for name, v in asdict(cfg).items() if name not in _NOT_IN_KEY}
    parts = {
        "version": [CACHE_VERSION, tokenizers.__version__, transformers.__version__],
        "content": fingerprint,
        "tokenizer": tokenizer_state(tokenizer),
        "config": settings,
        "records": [record.__name__ for record in allowed],
        "as_messages": as_messages,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def read_records(
    mixture: Mixture,
    cfg: DataConfig,
    stage: str,
    allowed: tuple[type, ...],
    report: DataReport,
    rows: Iterable[RawRow] | None = None,
) -> Iterator[RecordWithSource]:
    """Read the records of a mixture.

    Args:
        mixture: rows to read.
        cfg: data configuration; `max_bad_rows` malformed rows are tolerated.
        stage: name of the stage, for error messages.
        allowed: record classes that the stage takes, the preferred first.
        report: counts the rows.
        rows: the rows of the mixture, if a progress bar tracks them.
    """
    settings = [source.settings for source in mixture.sources]
    reader = RecordReader(cfg, stage, allowed, report, settings)
    return reader.read(mixture.rows() if rows is None else rows)


def iter_texts(cfg: DataConfig, stage: str, allowed: tuple[type, ...]) -> Iterator[str]:
    """Yield every text of the training rows, for training a tokenizer.

    These are documents, prompts, responses and contents of messages. Rows that cannot be read are
    skipped; they are counted when the rows are tokenized.

    Args:
        cfg: data configuration.
        stage: name of the stage, which selects the shipped rows.
        allowed: record classes that the stage takes.
    """
    for record in _read_training_records(cfg, stage, allowed):
        yield from _texts_of(record.record)


def has_chat_records(cfg: DataConfig, stage: str, allowed: tuple[type, ...]) -> bool:
    """Whether the first good row of a source has messages, which need a chat template."""
    paths = cfg.path if isinstance(cfg.path, list) else [cfg.path]
    by_source = [replace(cfg, path=[path], eval="none") for path in paths]
    firsts = (next(_read_training_records(one, stage, allowed), None) for one in by_source)
    return any(is_chat(first.record) for first in firsts if first)


def first_held_out_record_type(
    cfg: DataConfig, stage: str, allowed: tuple[type, ...]
) -> type | None:
    """Return the class of the first good held-out record; None if there is none.

    Args:
        cfg: data configuration, whose `eval` names or counts the rows.
        stage: name of the stage, which selects the shipped rows.
        allowed: accepted record classes, the preferred first.

    Raises:
        DataError: the rows do not exist, or fit none of these classes.
    """
    mixture = open_held_out_data(cfg, stage)
    if mixture is None:
        return None
    records = read_records(mixture, _tolerant(cfg), stage, allowed, DataReport())
    first = next(records, None)
    return type(first.record) if first else None


def _read_training_records(
    cfg: DataConfig, stage: str, allowed: tuple[type, ...]
) -> Iterator[RecordWithSource]:
    """Read each training row once, whatever the weight of its source."""
    sources = [
        replace(source, settings=replace(source.settings, weight=1.0))
        for source in open_sources(cfg, cfg.path, stage, "train")
    ]
    held_out = cfg.eval if isinstance(cfg.eval, int | float) else 0
    mixture = mix_training_rows(sources, held_out, seed=0)
    return read_records(mixture, _tolerant(cfg), stage, allowed, DataReport())


def _tolerant(cfg: DataConfig) -> DataConfig:
    """Return the configuration with any number of malformed rows allowed."""
    return replace(cfg, max_bad_rows=maxsize)


def _texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Message):
        yield value.content
    elif isinstance(value, tuple):
        for item in value:
            yield from _texts_of(item)
    elif is_dataclass(value):
        for part in fields(value):
            yield from _texts_of(getattr(value, part.name))

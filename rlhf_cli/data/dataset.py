"""The data pipeline: open sources, read records, tokenize, cache."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, fields, is_dataclass, replace
from sys import maxsize
from typing import Any

import numpy as np
import tokenizers
import transformers

from rlhf_cli.cache import Entry, load_entry, store_entry, tokenizer_state
from rlhf_cli.context import say
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.examples import Examples, examples_from_arrays, examples_to_arrays, flatten
from rlhf_cli.data.records.fields import Message
from rlhf_cli.data.records.reader import Located, RecordReader
from rlhf_cli.data.records.types import is_chat
from rlhf_cli.data.report import DataReport
from rlhf_cli.data.sources.mixture import (
    Mixture,
    open_held_out,
    open_sources,
    open_training,
    training_rows,
)
from rlhf_cli.data.tokens.record_tokenizer import RowMaker
from rlhf_cli.errors import DataError
from rlhf_cli.progress import track
from rlhf_cli.resources import cache_folder

Loaded = tuple[Examples, DataReport]


def load_examples(
    cfg: DataConfig,
    stage: str,
    tokenizer: Any,
    allowed: tuple[type, ...],
    seed: int = 0,
    *,
    as_messages: bool = False,
    cached_only: bool = False,
) -> Loaded:
    """The training examples of a stage, from the cache where it has them.

    Args:
        cfg: which rows, and how they become tokens and masks.
        stage: names the shipped rows, and stands in errors.
        tokenizer: a fast one.
        allowed: the record classes that the stage takes, the preferred first.
        seed: of the draw from sources with a weight that is no whole number.
        as_messages: text prompts and responses become turns of the chat template; else they are
            joined as they stand.
        cached_only: tokenize nothing: for ranks, whose tokens were made before they started.

    Raises:
        DataError: the rows cannot be read, are not what the stage takes, or none is left.
        ModelError: the tokenizer lacks what the rows need.
    """
    mixture = open_training(cfg, stage, seed)
    role = "training"
    return _load(mixture, role, cfg, stage, tokenizer, allowed, as_messages, cached_only)


def load_eval_examples(
    cfg: DataConfig,
    stage: str,
    tokenizer: Any,
    allowed: tuple[type, ...],
    *,
    as_messages: bool = False,
    cached_only: bool = False,
) -> Loaded | None:
    """The held-out examples that `data.eval` names or counts, or none; as `load_examples`."""
    rows = open_held_out(cfg, stage)
    if rows is None:
        return None
    return _load(rows, "held-out", cfg, stage, tokenizer, allowed, as_messages, cached_only)


def _load(
    mixture: Mixture,
    role: str,
    cfg: DataConfig,
    stage: str,
    tokenizer: Any,
    allowed: tuple[type, ...],
    as_messages: bool,
    cached_only: bool,
) -> Loaded:
    names = tuple(name for source in mixture.sources for name in source.names)
    shown = names[0] if len(names) == 1 else f"{len(names)} files"
    report = DataReport(names, sha256=mixture.content)
    maker = RowMaker(tokenizer, cfg, report, as_messages=as_messages)
    key = entry_key(report.sha256, tokenizer, cfg, allowed, as_messages=as_messages)
    entry = load_entry(key)
    if entry is not None:
        report = DataReport.from_dict(entry.facts)
        examples = examples_from_arrays(names, entry.arrays)
        say(f"{shown}: tokens from the cache ({key})")
    elif cached_only:
        raise DataError(
            f"{shown}: its tokens are not in the cache ({cache_folder()}), where they were put "
            "before the ranks started; set RLHF_CACHE to a folder that all processes can use"
        )
    else:
        began = time.monotonic()
        settings = [source.settings for source in mixture.sources]
        reader = RecordReader(cfg, stage, allowed, report, settings)
        examples = _build(mixture, names, reader, maker)
        say(f"{shown}: tokenized in {time.monotonic() - began:.1f} s (not in the cache)")
        store_entry(key, Entry(examples_to_arrays(examples), report.to_dict()))
    report.skipped_files = tuple(name for source in mixture.sources for name in source.skipped)
    report.sources, report.held_out = mixture.facts, mixture.held_out
    for line in report.lines(role):
        say(line)
    return examples, report


def _build(
    mixture: Mixture, names: tuple[str, ...], reader: RecordReader, maker: RowMaker
) -> Examples:
    size = sum(source.size for source in mixture.sources)
    with closing(track(mixture.rows(), size)) as rows:  # the bar goes before an error shows
        examples = flatten(maker.examples(reader.read(rows)), names)
    report = maker.report
    report.require_kept()
    report.examples = len(examples)
    report.tokens = len(examples.tokens)
    report.trained_tokens = int(examples.trained.sum())
    report.measure(np.diff(examples.row_starts))
    return examples


VERSION = 8
"""Raise it when the same rows become other tokens, masks or arrays."""


# Neither which rows are in a file nor how they are tokenized depends on these.
# What they say about the rows is a part of the content's fingerprint.
_IRRELEVANT = ("path", "eval", "shuffle", "name", "split", "data_dir", "format", "columns")


def entry_key(
    content: str,
    tokenizer: Any,
    cfg: DataConfig,
    allowed: tuple[type, ...],
    *,
    as_messages: bool = False,
) -> str:
    """Names an entry by all that its tokens depend on.

    Args:
        content: fingerprint of the files.
        tokenizer: vocabulary, rules, special tokens and template count.
        cfg: all but what does not change the rows.
        allowed: the record classes that the stage takes.
        as_messages: text prompts and responses become turns of the chat template.
    """
    settings = {name: v for name, v in asdict(cfg).items() if name not in _IRRELEVANT}
    parts = {
        "version": [VERSION, tokenizers.__version__, transformers.__version__],
        "content": content,
        "tokenizer": tokenizer_state(tokenizer),
        "config": settings,
        "records": [record.__name__ for record in allowed],
        "as_messages": as_messages,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def iter_texts(cfg: DataConfig, stage: str, allowed: tuple[type, ...]) -> Iterator[str]:
    """Every text of the training rows, to train a tokenizer on.

    Documents, prompts, responses and the contents of messages. Rows that cannot be read are
    passed over: they are counted where the rows become examples.

    Args:
        cfg: which rows.
        stage: whose shipped rows `tiny` means.
        allowed: the record classes that the stage takes.
    """
    for located in _records(cfg, stage, allowed):
        yield from _texts(located.record)


def holds_chats(cfg: DataConfig, stage: str, allowed: tuple[type, ...]) -> bool:
    """Whether the first good row of a source is messages, so that a chat template is needed."""
    paths = cfg.path if isinstance(cfg.path, list) else [cfg.path]
    alone = [replace(cfg, path=[path], eval="none") for path in paths]
    firsts = (next(_records(one, stage, allowed), None) for one in alone)
    return any(is_chat(first.record) for first in firsts if first)


def first_held_out(cfg: DataConfig, stage: str, allowed: tuple[type, ...]) -> type | None:
    """The class of the first good held-out record; none where there is none.

    Args:
        cfg: `eval` names or counts the rows.
        stage: whose shipped rows `tiny` means.
        allowed: the record classes that can be, the preferred first.

    Raises:
        DataError: the rows are not there, or are of none of these classes.
    """
    mixture = open_held_out(cfg, stage)
    if mixture is None:
        return None
    settings = [source.settings for source in mixture.sources]
    lenient = replace(cfg, max_bad_rows=maxsize)
    reader = RecordReader(lenient, stage, allowed, DataReport(), settings)
    first = next(reader.read(mixture.rows()), None)
    return type(first.record) if first else None


def _records(cfg: DataConfig, stage: str, allowed: tuple[type, ...]) -> Iterator[Located]:
    sources = open_sources(cfg, cfg.path, stage, "train")
    settings = [replace(source.settings, weight=1.0) for source in sources]
    once = [replace(s, settings=own) for s, own in zip(sources, settings, strict=True)]
    held_out = cfg.eval if isinstance(cfg.eval, int | float) else 0
    lenient = replace(cfg, max_bad_rows=maxsize)
    reader = RecordReader(lenient, stage, allowed, DataReport(), settings)
    return reader.read(training_rows(once, held_out, seed=0).rows())


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Message):
        yield value.content
    elif isinstance(value, tuple):
        for item in value:
            yield from _texts(item)
    elif is_dataclass(value):
        for part in fields(value):
            yield from _texts(getattr(value, part.name))

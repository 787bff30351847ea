"""Records before there is a tokenizer: their texts, and whether they are chats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from sys import maxsize
from typing import Any

from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.reading.mixture import training_rows
from rlhf_cli.data.reading.opening import open_held_out, open_sources
from rlhf_cli.data.records.fields import Message
from rlhf_cli.data.records.reader import Located, RecordReader
from rlhf_cli.data.records.record import is_chat
from rlhf_cli.data.report import DataReport


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

"""Tokenized examples, held flat; what the loader draws from and the cache stores."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.console import logger
from rlhf_cli.data.cache import Entry, entry_key, load_entry, store_entry
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.progress import track
from rlhf_cli.data.reading.mixture import Mixture
from rlhf_cli.data.reading.opening import open_held_out, open_training
from rlhf_cli.data.records.reader import RecordReader
from rlhf_cli.data.report import DataReport
from rlhf_cli.data.tokens.packing import Example
from rlhf_cli.data.tokens.rows import RowMaker
from rlhf_cli.errors import DataError
from rlhf_cli.resources import cache_folder


@dataclass(frozen=True)
class Examples:
    """Token rows of a whole data set. One example is one row, or several that never split.

    Attributes:
        tokens: [N] int32, all rows one after another.
        trained: [N] bool, True where the token is a target. A row's first token never is.
        row_starts: [R + 1] int64, bounds of the rows in `tokens`.
        example_starts: [E + 1] int64, bounds of the examples in the rows.
        files: names of the files that the rows come from.
        origin: [E, 2] int64, index into `files` and line number (1 for the first) of each example.
        columns: name -> [R] float32, what is known of each row beside its tokens; `score` is what a
            judge said of it.
    """

    tokens: NDArray[np.int32]
    trained: NDArray[np.bool_]
    row_starts: NDArray[np.int64]
    example_starts: NDArray[np.int64]
    files: tuple[str, ...]
    origin: NDArray[np.int64]
    columns: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.example_starts) - 1

    def where(self, example: int) -> str:
        """The example's `file:line`, for messages."""
        file, line = self.origin[example]
        return f"{self.files[file]}:{line}"

    @cached_property
    def token_starts(self) -> NDArray[np.int64]:
        """[E + 1] int64, bounds of the examples in `tokens`."""
        return self.row_starts[self.example_starts]


ARRAYS = ("tokens", "trained", "row_starts", "example_starts", "origin")
COLUMN = "column "

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
        examples = _unpack(names, entry.arrays)
        logger.info(f"{shown}: tokens from the cache ({key})")
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
        logger.info(f"{shown}: tokenized in {time.monotonic() - began:.1f} s (not in the cache)")
        store_entry(key, Entry(_pack(examples), report.to_dict()))
    report.skipped_files = tuple(name for source in mixture.sources for name in source.skipped)
    report.sources, report.held_out = mixture.facts, mixture.held_out
    for line in report.lines(role):
        logger.info(line)
    return examples, report


def _pack(examples: Examples) -> dict[str, NDArray[Any]]:
    """All arrays by name; columns with a mark."""
    columns = {f"{COLUMN}{name}": values for name, values in examples.columns.items()}
    return {**{name: getattr(examples, name) for name in ARRAYS}, **columns}


def _unpack(files: tuple[str, ...], arrays: Mapping[str, NDArray[Any]]) -> Examples:
    own = {name: arrays[name] for name in ARRAYS}
    columns = {
        name.removeprefix(COLUMN): values
        for name, values in arrays.items()
        if name.startswith(COLUMN)
    }
    return Examples(files=files, **own, columns=columns)


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


def flatten(examples: Iterable[Example], files: tuple[str, ...]) -> Examples:
    """Examples one after another; `origin` is where an example's first row stands."""
    index = {name: i for i, name in enumerate(files)}
    tokens, trained = bytearray(), bytearray()
    row_starts, example_starts, origin = array("q", [0]), array("q", [0]), array("q")
    scores = array("f")
    for example in examples:
        for source in example:
            tokens += source.row.tokens.tobytes()
            trained += source.row.trained.tobytes()
            row_starts.append(len(trained))
            if source.score is not None:
                scores.append(source.score)
        example_starts.append(len(row_starts) - 1)
        origin.extend((index[example[0].file], example[0].line))
    return Examples(
        np.frombuffer(tokens, np.int32),
        np.frombuffer(trained, np.bool_),
        np.frombuffer(row_starts, np.int64),
        np.frombuffer(example_starts, np.int64),
        files,
        np.frombuffer(origin, np.int64).reshape(-1, 2),
        {"score": np.frombuffer(scores, np.float32)} if scores else {},
    )

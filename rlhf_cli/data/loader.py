"""Load optimizer steps: sample examples, collate them into token batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.examples import Examples
from rlhf_cli.distributed import SINGLE_PROCESS, Ranks
from rlhf_cli.errors import CheckpointError, DataError

Updates = list[list[TokenBatch]]
"""Optimizer steps, each a list of micro-batches."""

Indices = Sequence[int] | NDArray[np.int64]


class StepSettings(Protocol):
    """The keys of `train` that decide the steps of a run."""

    batch_size: int
    epochs: int
    max_steps: int


class EpochSampler:
    """Samples the items of each step; every item is used once per epoch.

    The last step of an epoch has the remaining items. The order depends on seed and epoch alone.

    Args:
        items: number of items, at least one.
        tokens: tokens of all items, stored to recognize other data in a checkpoint.
        data: `shuffle`; without it the items keep their order.
        train: `batch_size`, `epochs` and `max_steps`.
        seed: seed of the order.
        unit: name of the items in messages.

    Raises:
        DataError: there are no items.
    """

    def __init__(
        self,
        items: int,
        tokens: int,
        data: DataConfig,
        train: StepSettings,
        seed: int,
        unit: str = "examples",
    ) -> None:
        if not items:
            raise DataError(f"no {unit} to train on; need at least one row")
        self.items, self.tokens, self.unit = items, tokens, unit
        self.batch_size, self.shuffle, self.seed = train.batch_size, data.shuffle, seed
        self.steps_per_epoch = -(-items // train.batch_size)
        self.total_steps = train.max_steps or train.epochs * self.steps_per_epoch
        self.step = 0
        self._cached_order = (-1, np.empty(0, np.int64))

    def next_step(self) -> NDArray[np.int64] | None:
        """Return the items of the next step; None at the end of the run."""
        if self.step >= self.total_steps:
            return None
        epoch, step = divmod(self.step, self.steps_per_epoch)
        start = step * self.batch_size
        self.step += 1
        return self.epoch_order(epoch)[start : start + self.batch_size]

    def epoch_order(self, epoch: int) -> NDArray[np.int64]:
        """Return all items in the order of an epoch, counted from 0."""
        if self._cached_order[0] != epoch:
            order = np.arange(self.items)
            if self.shuffle:
                order = np.random.default_rng((self.seed, epoch)).permutation(self.items)
            self._cached_order = (epoch, order)
        return self._cached_order[1]

    @property
    def _data_size(self) -> dict[str, int]:
        return {self.unit: self.items, "tokens": self.tokens, "batch_size": self.batch_size}

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and the size of the data and batches it refers to."""
        epoch, step = divmod(self.step, self.steps_per_epoch)
        return {"epoch": epoch, "position": step * self.batch_size, **self._data_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of `state_dict`.

        Raises:
            CheckpointError: the data or the batch size differ from those of the checkpoint.
        """
        for name, now in self._data_size.items():
            if state[name] != now:
                raise CheckpointError(
                    f"the checkpoint was written with {state[name]} {name} and there are {now} now;"
                    " continue with the same data, or start anew with another output_dir"
                )
        self.step = state["epoch"] * self.steps_per_epoch + state["position"] // self.batch_size


class ExampleLoader:
    """Loads optimizer steps of `train.batch_size` examples; a `StepSource`.

    The batches of a step are collated while the device computes the step before.

    Args:
        examples: at least one example.
        data: `shuffle`.
        train: `batch_size`, `epochs` and `max_steps`.
        seed: seed of the order.
        micro_batch_tokens: maximum tokens of a micro-batch.
        ranks: ranks that share each step; the examples of a step do not depend on them.

    Raises:
        DataError: there are no examples.
    """

    def __init__(
        self,
        examples: Examples,
        data: DataConfig,
        train: StepSettings,
        seed: int,
        micro_batch_tokens: int,
        ranks: Ranks = SINGLE_PROCESS,
    ) -> None:
        self.examples, self.max_tokens, self.ranks = examples, micro_batch_tokens, ranks
        self.sampler = EpochSampler(len(examples), len(examples.tokens), data, train, seed)
        self._position = self.sampler.state_dict()
        self._worker = ThreadPoolExecutor(1)
        self._prefetched: Future[Updates | None] | None = None

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, from its first."""
        return self.sampler.total_steps

    def __iter__(self) -> Iterator[list[TokenBatch]]:
        """Yield this rank's micro-batches of each remaining step."""
        while (updates := self.next_step()) is not None:
            yield from updates

    def next_step(self) -> Updates | None:
        """Return this rank's micro-batches of the next step; None at the end of the run."""
        step = self._collate_step() if self._prefetched is None else self._prefetched.result()
        self._position = self.sampler.state_dict()
        self._prefetched = self._worker.submit(self._collate_step)
        return step

    def _collate_step(self) -> Updates | None:
        indices = self.sampler.next_step()
        if indices is None:
            return None
        own = rank_share(self.examples, indices, self.ranks)
        return [micro_batches(self.examples, own, self.max_tokens)]

    def take_metrics(self) -> dict[str, tuple[torch.Tensor, float]]:
        """Return no metrics: loading measures nothing."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last step that was returned, without the prefetched one."""
        return self._position

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of `state_dict`; no example is collated again.

        Raises:
            CheckpointError: the data or the batch size differ from those of the checkpoint.
        """
        if self._prefetched is not None:
            self._prefetched.result()
        self.sampler.load_state_dict(state)
        self._position, self._prefetched = self.sampler.state_dict(), None


def collate(examples: Examples, indices: Indices) -> TokenBatch:
    """Collate the rows of some examples, in the order of the indices."""
    chosen = np.asarray(indices, np.int64)
    starts, rows = examples.token_starts, examples.example_starts
    token_spans = [slice(starts[i], starts[i + 1]) for i in chosen]
    row_spans = [slice(rows[i], rows[i + 1]) for i in chosen]
    lengths = [np.diff(examples.row_starts[s.start : s.stop + 1]) for s in row_spans]
    tokens = np.concatenate([examples.tokens[span] for span in token_spans])
    loss_mask = np.concatenate([examples.loss_mask[span] for span in token_spans])
    return TokenBatch(
        torch.from_numpy(tokens.astype(np.int64)),
        torch.from_numpy(np.concatenate(lengths)),
        # a row's first token is never a target, so the token before a target is of the same row
        torch.from_numpy(loss_mask.nonzero()[0] - 1),
        torch.from_numpy(np.repeat(chosen, [s.stop - s.start for s in row_spans])),
        {
            name: torch.from_numpy(np.concatenate([values[s] for s in row_spans]))
            for name, values in examples.columns.items()
        },
    )


def micro_batches(examples: Examples, indices: Indices, max_tokens: int) -> list[TokenBatch]:
    """Collate examples into micro-batches of at most `max_tokens` tokens, similar lengths together.

    An example is never split; a longer one is a micro-batch of its own.
    """
    return [collate(examples, group) for group in group_examples(examples, indices, max_tokens)]


def eval_batches(
    examples: Examples, max_tokens: int, ranks: Ranks = SINGLE_PROCESS
) -> Iterator[TokenBatch]:
    """Yield this rank's micro-batches of all examples, in an order that is always the same."""
    groups = group_examples(examples, np.arange(len(examples)), max_tokens)
    for group in islice(groups, ranks.rank, None, ranks.world_size):
        yield collate(examples, group)


def rank_share(examples: Examples, indices: Indices, ranks: Ranks) -> NDArray[np.int64]:
    """Return this rank's examples of a step, distributed by length so that the work is even.

    Args:
        examples: the whole data set.
        indices: examples of the step; if there are fewer than ranks, the last ranks get none.
        ranks: this rank and the number of ranks.
    """
    return _sort_by_length(examples, indices)[ranks.rank :: ranks.world_size]


def group_examples(examples: Examples, indices: Indices, max_tokens: int) -> Iterator[list[int]]:
    """Yield the indices, longest examples first, in groups of at most `max_tokens` tokens."""
    starts = examples.token_starts

    def length(index: int) -> int:
        return int(starts[index + 1] - starts[index])

    return group_by_tokens(_sort_by_length(examples, indices).tolist(), length, max_tokens)


def group_by_tokens(
    items: Iterable[int], length: Callable[[int], int], max_tokens: int
) -> Iterator[list[int]]:
    """Yield the items, in order, in groups of at most `max_tokens` tokens.

    Args:
        items: items to group.
        length: number of tokens of an item; a longer one than `max_tokens` is a group of its own.
        max_tokens: maximum tokens of a group.
    """
    group: list[int] = []
    room = max_tokens
    for item in items:
        if group and length(item) > room:
            yield group
            group, room = [], max_tokens
        group.append(item)
        room -= length(item)
    if group:
        yield group


def _sort_by_length(examples: Examples, indices: Indices) -> NDArray[np.int64]:
    """Return the indices, longest examples first; those of one length by index."""
    chosen = np.asarray(indices, np.int64)
    lengths = examples.token_starts[chosen + 1] - examples.token_starts[chosen]
    return chosen[np.lexsort((chosen, -lengths))]

"""Sample the items of each optimizer step, and group them into micro-batches; without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.examples import Examples
from rlhf_cli.errors import CheckpointError, DataError

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


def rank_share(
    examples: Examples, indices: Indices, rank: int, world_size: int
) -> NDArray[np.int64]:
    """Return a rank's examples of a step, distributed by length so that the work is even.

    Args:
        examples: the whole data set.
        indices: examples of the step; if there are fewer than ranks, the last ranks get none.
        rank: from 0.
        world_size: number of ranks.
    """
    return _sort_by_length(examples, indices)[rank::world_size]


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

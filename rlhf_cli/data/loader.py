"""From examples to seeded optimizer steps of micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.examples import Examples
from rlhf_cli.distributed import ALONE, Ranks
from rlhf_cli.errors import CheckpointError, DataError
from rlhf_cli.train.config import TrainConfig


class Order:
    """Steps of so many items; every item is drawn once an epoch, the last step takes what is left.

    The order depends on seed and epoch alone.

    Args:
        items: at least one.
        tokens: of all items together; a checkpoint is not continued with others.
        data: `shuffle`; else the items come as they stand.
        train: `batch_size`, `epochs` and `max_steps`.
        seed: of the order.
        unit: what an item is called.

    Raises:
        DataError: there is no item.
    """

    def __init__(
        self,
        items: int,
        tokens: int,
        data: DataConfig,
        train: TrainConfig,
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
        self._drawn = (-1, np.empty(0, np.int64))

    def next_step(self) -> NDArray[np.int64] | None:
        """The items of the next step; none when the run is over."""
        if self.step >= self.total_steps:
            return None
        epoch, step = divmod(self.step, self.steps_per_epoch)
        start = step * self.batch_size
        self.step += 1
        return self.of(epoch)[start : start + self.batch_size]

    def of(self, epoch: int) -> NDArray[np.int64]:
        """All items in the order of an epoch, counted from 0."""
        if self._drawn[0] != epoch:
            self._drawn = (epoch, self._draw(epoch))
        return self._drawn[1]

    def _draw(self, epoch: int) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(self.items)
        return np.random.default_rng((self.seed, epoch)).permutation(self.items)

    @property
    def _refers_to(self) -> dict[str, int]:
        return {self.unit: self.items, "tokens": self.tokens, "batch_size": self.batch_size}

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it refers to."""
        epoch, step = divmod(self.step, self.steps_per_epoch)
        return {"epoch": epoch, "position": step * self.batch_size, **self._refers_to}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; no item of the epoch is drawn again.

        Raises:
            CheckpointError: the data or the batch size are not those of the checkpoint.
        """
        for name, now in self._refers_to.items():
            if state[name] != now:
                raise CheckpointError(
                    f"the checkpoint was written with {state[name]} {name} and there are {now} now;"
                    " continue with the same data, or start anew with another output_dir"
                )
        self.step = state["epoch"] * self.steps_per_epoch + state["position"] // self.batch_size


Updates = list[list[TokenBatch]]


Indices = Sequence[int] | NDArray[np.int64]


def collate(examples: Examples, indices: Indices) -> TokenBatch:
    """The rows of some examples, in the order of the indices."""
    chosen = np.asarray(indices, np.int64)
    starts, rows = examples.token_starts, examples.example_starts
    spans = [slice(starts[i], starts[i + 1]) for i in chosen]
    of_example = [slice(rows[i], rows[i + 1]) for i in chosen]
    lengths = [np.diff(examples.row_starts[s.start : s.stop + 1]) for s in of_example]
    trained = np.concatenate([examples.trained[span] for span in spans])
    return TokenBatch(
        torch.from_numpy(
            np.concatenate([examples.tokens[span] for span in spans]).astype(np.int64)
        ),
        torch.from_numpy(np.concatenate(lengths)),
        # a row's first token is never trained, so the token before a trained one is of its row
        torch.from_numpy(trained.nonzero()[0] - 1),
        torch.from_numpy(np.repeat(chosen, [s.stop - s.start for s in of_example])),
        {
            name: torch.from_numpy(np.concatenate([values[s] for s in of_example]))
            for name, values in examples.columns.items()
        },
    )


def micro_batches(examples: Examples, indices: Indices, max_tokens: int) -> list[TokenBatch]:
    """Some examples in parts of at most `max_tokens` tokens, those of like length together.

    An example is never split; one that is longer by itself stands alone.
    """
    return [collate(examples, part) for part in parts(examples, indices, max_tokens)]


def eval_batches(examples: Examples, max_tokens: int, ranks: Ranks = ALONE) -> Iterator[TokenBatch]:
    """All examples once, in micro-batches, always in the same order; dealt out to the ranks."""
    every = parts(examples, np.arange(len(examples)), max_tokens)
    for part in islice(every, ranks.rank, None, ranks.size):
        yield collate(examples, part)


def share(examples: Examples, indices: Indices, ranks: Ranks) -> NDArray[np.int64]:
    """One rank's part of a step: dealt out by length, so that all have about the same work.

    Args:
        examples: the whole data set.
        indices: the step's examples; with fewer than ranks, the last ranks get none.
        ranks: who deals.
    """
    return _by_length(examples, indices)[ranks.rank :: ranks.size]


def _by_length(examples: Examples, indices: Indices) -> NDArray[np.int64]:
    """The indices, the longest examples first; those of one length by index."""
    chosen = np.asarray(indices, np.int64)
    lengths = examples.token_starts[chosen + 1] - examples.token_starts[chosen]
    return chosen[np.lexsort((chosen, -lengths))]


def parts(examples: Examples, indices: Indices, max_tokens: int) -> Iterator[list[int]]:
    """The indices, the longest examples first, in groups of at most `max_tokens` tokens."""
    part: list[int] = []
    room = max_tokens
    for index in _by_length(examples, indices).tolist():
        length = int(examples.token_starts[index + 1] - examples.token_starts[index])
        if part and length > room:
            yield part
            part, room = [], max_tokens
        part.append(index)
        room -= length
    if part:
        yield part


class ExampleSource:
    """Optimizer steps of `train.batch_size` examples, epoch after epoch.

    The rows of a step are put together while the device computes the step before.

    Args:
        examples: at least one.
        data: `shuffle`.
        train: `batch_size`, `epochs` and `max_steps`.
        seed: of the order.
        micro_batch_tokens: tokens of a micro-batch, at most.
        ranks: each step is dealt out to these; which examples it has does not depend on them.

    Raises:
        DataError: there is no example.
    """

    def __init__(
        self,
        examples: Examples,
        data: DataConfig,
        train: TrainConfig,
        seed: int,
        micro_batch_tokens: int,
        ranks: Ranks = ALONE,
    ) -> None:
        self.examples, self.max_tokens, self.ranks = examples, micro_batch_tokens, ranks
        self.order = Order(len(examples), len(examples.tokens), data, train, seed)
        self._position = self.order.state_dict()
        self._worker = ThreadPoolExecutor(1)
        self._ahead: Future[Updates | None] | None = None

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, from its first."""
        return self.order.total_steps

    def __iter__(self) -> Iterator[list[TokenBatch]]:
        """This rank's micro-batches of each step that is left."""
        while (updates := self.next_step()) is not None:
            yield from updates

    def next_step(self) -> Updates | None:
        """The one update of the next step, this rank's micro-batches; or None: the run is over."""
        step = self._make() if self._ahead is None else self._ahead.result()
        self._position = self.order.state_dict()
        self._ahead = self._worker.submit(self._make)
        return step

    def _make(self) -> Updates | None:
        indices = self.order.next_step()
        if indices is None:
            return None
        own = share(self.examples, indices, self.ranks)
        return [micro_batches(self.examples, own, self.max_tokens)]

    def take_metrics(self) -> dict[str, tuple[torch.Tensor, float]]:
        """None: rows that are read have nothing to tell."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The position behind the last step that was given, and what it refers to."""
        return self._position

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; no example is read again.

        Raises:
            CheckpointError: the data or the batch size are not those of the checkpoint.
        """
        if self._ahead is not None:
            self._ahead.result()
        self.order.load_state_dict(state)
        self._position, self._ahead = self.order.state_dict(), None

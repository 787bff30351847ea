"""In which order the items of a data set are drawn, epoch after epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.data.config import DataConfig
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

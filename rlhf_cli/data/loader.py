"""Load optimizer steps: collate sampled examples into token batches."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.examples import Examples
from rlhf_cli.data.sampler import EpochSampler, Indices, StepSettings, group_examples, rank_share
from rlhf_cli.distributed.ranks import SINGLE_PROCESS, Ranks

Updates = list[list[TokenBatch]]
"""Optimizer steps, each a list of micro-batches."""


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
        self.examples, self.max_tokens, self.ranks = examples, micro_batch_tokens, ranks.data
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
        own = rank_share(self.examples, indices, self.ranks.rank, self.ranks.world_size)
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
    """Yield this rank's micro-batches of all examples, in an order that is always the same.

    With sharded weights all ranks get equally many; the last of some is a filler.
    """
    groups = list(group_examples(examples, np.arange(len(examples)), max_tokens))
    rank, size = ranks.data.rank, ranks.data.world_size
    own = groups[rank::size]
    for group in own:
        yield collate(examples, group)
    if ranks.sharded and len(own) * size < len(groups):
        yield replace(collate(examples, groups[0][:1]), is_filler=True)

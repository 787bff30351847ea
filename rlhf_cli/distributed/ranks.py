"""Collective communication between the processes that train one model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch import distributed as dist
from torch.distributed.distributed_c10d import ProcessGroup

from rlhf_cli.distributed.process_group import raising_rank_failed
from rlhf_cli.errors import ConfigError, RankFailed

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The rank of this process and its collectives; a single process needs no process group.

    All ranks make the same calls in the same order. Results are bitwise equal on all ranks: sums
    are taken in rank order, or computed once and then broadcast.

    Attributes:
        rank: from 0; rank 0 writes files and logs.
        world_size: number of processes.
        sharded: whether the ranks share the weights. Every pass of a model is then collective: all
            ranks make equally many, in the same order.
        group: of these processes; none for all processes of the run.
        data_ranks: one process of each context group, this one's place in the data; none where
            every process reads rows of its own.
        context_ranks: the processes that share this one's tokens; none without context parallelism.
    """

    rank: int = 0
    world_size: int = 1
    sharded: bool = False
    group: ProcessGroup | None = None
    data_ranks: Ranks | None = None
    context_ranks: Ranks | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and logs."""
        return self.rank == 0

    @property
    def data(self) -> Ranks:
        """The ranks among which rows are divided: every row is read, and counted, by one of them.

        All processes of the first context group are rank 0 of theirs: what is the same on all ranks
        is counted on rank 0, and written by the main process alone.
        """
        return self.data_ranks or self

    @property
    def context(self) -> Ranks:
        """The ranks that compute the tokens of the same micro-batches; else this process alone."""
        return self.context_ranks or SINGLE_PROCESS

    def __deepcopy__(self, memo: dict[int, object]) -> Ranks:
        """Return itself: a copy of a model has the same process groups, which cannot be copied."""
        return self

    def shard(self, count: int) -> range:
        """Indices of this rank's shard of `count` items: contiguous, of equal size up to one."""
        size = self.world_size
        return range(count * self.rank // size, count * (self.rank + 1) // size)

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor by its sum over all ranks, in place."""
        if self.world_size > 1:
            with raising_rank_failed():
                dist.all_reduce(tensor, group=self.group)

    def all_to_all(self, tensor: Tensor) -> Tensor:
        """Send slice r [...] of a tensor [world_size, ...] to rank r; receive theirs, by rank."""
        if self.world_size == 1:
            return tensor
        sent = tensor.contiguous()
        received = torch.empty_like(sent)
        with raising_rank_failed():
            dist.all_to_all_single(received, sent, group=self.group)
        return received

    def all_gather_stack(self, tensor: Tensor) -> Tensor:
        """Stack the tensors [...] of all ranks, which have one shape: [world_size, ...]."""
        if self.world_size == 1:
            return tensor[None]
        sent = tensor.contiguous()
        received = sent.new_empty((self.world_size, *sent.shape))
        with raising_rank_failed():
            dist.all_gather(list(received.unbind()), sent, group=self.group)
        return received

    def all_gather_json(self, value: T) -> list[T]:
        """Gather one JSON value from each rank, in rank order; tuples come back as lists."""
        if self.world_size == 1:
            return [value]
        return [json.loads(text) for text in self._gather_bytes(json.dumps(value).encode())]

    def all_gather_tensors(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Gather the named tensors of each rank, whose shapes may differ.

        Returns:
            One dictionary per rank: on the CPU with several ranks, as given with one.
        """
        if self.world_size == 1:
            return [dict(tensors)]
        own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return [load(data) for data in self._gather_bytes(save(own))]

    def all_gather_concat(self, tensor: Tensor) -> Tensor:
        """Concatenate the tensors [N, ...] of all ranks along dim 0, in rank order."""
        if self.world_size == 1:
            return tensor
        parts = [part["rows"] for part in self.all_gather_tensors({"rows": tensor})]
        return torch.cat(parts).to(tensor.device)

    def _gather_bytes(self, data: bytes) -> list[bytes]:
        """Gather bytes from each rank; nothing is unpickled, so what arrives cannot run code."""
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.world_size)]
        with raising_rank_failed():
            dist.all_gather(sizes, torch.tensor([len(data)]), group=self.group)
        counts = [int(size) for size in sizes]
        padded = bytearray(data).ljust(max(counts), b"\0")
        parts = [torch.empty(len(padded), dtype=torch.uint8) for _ in range(self.world_size)]
        with raising_rank_failed():
            dist.all_gather(parts, torch.frombuffer(padded, dtype=torch.uint8), group=self.group)
        return [part[:count].numpy().tobytes() for part, count in zip(parts, counts, strict=True)]

    def sum_by_name(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sum named values over all ranks; a name that a rank lacks counts as 0 there."""
        total: dict[str, float] = {}
        for own in self.all_gather_json(dict(values)):
            for name, value in own.items():
                total[name] = total.get(name, 0) + value
        return total

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on at least one rank."""
        if self.world_size == 1:
            return flag
        count = torch.tensor([int(flag)])
        self.all_reduce(count)
        return bool(count)

    def run_on_main(self, act: Callable[[], object]) -> None:
        """Call a function on rank 0 while the other ranks wait.

        Raises:
            RankFailed: on the other ranks if it failed on rank 0, which raises its own error.
        """
        error: Exception | None = None
        if self.is_main:
            try:
                act()
            except Exception as raised:
                error = raised
        self.raise_together(error, "rank 0")

    def call_together(self, act: Callable[[], T]) -> T:
        """Call a function on all ranks, and raise on all where it fails on one.

        Raises:
            RankFailed: another rank has an error, and this one has none.
        """
        error: Exception | None = None
        try:
            found = act()
        except Exception as raised:
            error = raised
        self.raise_together(error)
        return found

    def raise_together(self, error: Exception | None, others: str = "another rank") -> None:
        """Raise on all ranks where one has an error, so that none waits for it later.

        Args:
            error: of this rank; none if it has none.
            others: ranks that may have one, for the message.

        Raises:
            RankFailed: another rank has an error, and this one has none.
        """
        failed = self.any(error is not None)
        if error is not None:
            raise error
        if failed:
            raise RankFailed(f"{others} failed; see its error")


SINGLE_PROCESS = Ranks()


def current_ranks() -> Ranks:
    """Return the ranks of the initialized process group, else this process alone."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return SINGLE_PROCESS


def is_first_on_machine(ranks: Ranks) -> bool:
    """Whether this rank does for its machine what is needed once on each, as filling the cache."""
    return ranks.world_size == 1 or int(os.environ.get("LOCAL_RANK", ranks.rank)) == 0


def divide_ranks(ranks: Ranks, context_parallel: int) -> Ranks:
    """Form context groups of consecutive ranks, which share the tokens of each micro-batch.

    Consecutive ranks are on one machine where the groups are no larger than it. All ranks call this
    together.

    Args:
        ranks: all processes of the run.
        context_parallel: ranks of a context group.

    Returns:
        The same ranks, with their place in the data and in their context group.

    Raises:
        ConfigError: the groups do not divide the processes.
    """
    size, world = context_parallel, ranks.world_size
    if size == 1:
        return ranks
    if world % size:
        raise ConfigError(
            f"launch.context_parallel: got {size} with {world} processes; need a divisor of their "
            f"number. Try launch.processes={size}"
        )
    number, place = divmod(ranks.rank, size)
    context = _form_groups([list(range(i, i + size)) for i in range(0, world, size)])[number]
    data = _form_groups([list(range(i, world, size)) for i in range(size)])[place]
    return replace(
        ranks,
        data_ranks=Ranks(number, world // size, ranks.sharded, data),
        context_ranks=Ranks(place, size, ranks.sharded, context),
    )


def _form_groups(members: list[list[int]]) -> list[ProcessGroup]:
    """Create process groups; each process creates all of them, as torch asks for."""
    with raising_rank_failed():
        return [dist.new_group(ranks) for ranks in members]

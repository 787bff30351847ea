"""Threads of one process in the place of ranks: collectives without process groups."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.distributed import Ranks

TIMEOUT = 60.0
"""Seconds after which a thread gives up waiting for one that makes fewer calls."""


class Meeting:
    """Where threads leave their tensors for each other."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=TIMEOUT)
        self.left: list[Any] = [None] * size

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """Leave a value, and return those of all threads once they are there."""
        self.left[rank] = value
        self.barrier.wait()
        found = list(self.left)
        self.barrier.wait()  # nobody leaves the next value before all have read
        return found


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    """The collectives that context parallelism uses, between threads."""

    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def all_to_all(self, tensor: Tensor) -> Tensor:
        every = self.meeting.exchange(self.rank, tensor.detach().clone())
        return torch.stack([sent[self.rank] for sent in every])

    def all_gather_stack(self, tensor: Tensor) -> Tensor:
        return torch.stack(self.meeting.exchange(self.rank, tensor.detach().clone()))


def run_as_ranks(size: int, act: Callable[[Ranks], Any]) -> list[Any]:
    """Call a function in one thread for each rank; return what each of them returned."""
    meeting = Meeting(size)

    def call(rank: int) -> Any:
        try:
            return act(ThreadRanks(rank, size, meeting=meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        started = [pool.submit(call, rank) for rank in range(size)]
    errors = [error for one in started if (error := one.exception()) is not None]
    for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
        raise error
    return [one.result() for one in started]

"""Ranks that are threads of one process: their collectives are real, their memory is shared."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from rlhf_cli.distributed.ranks import Ranks
from rlhf_cli.errors import RankFailed


class _Meeting:
    """Where the ranks exchange values, one collective call after another."""

    SECONDS = 60.0

    def __init__(self, count: int) -> None:
        self.count, self.changed = count, threading.Condition()
        self.calls = [0] * count
        self.values: dict[int, dict[int, Any]] = {}
        self.ended: set[int] = set()

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """The values of all ranks; raises `RankFailed` where another rank ended before its call."""
        with self.changed:
            found = self.values.setdefault(self.calls[rank], {})
            self.calls[rank] += 1
            found[rank] = value
            self.changed.notify_all()
            self.changed.wait_for(
                lambda: len(found) == self.count or self.ended - found.keys(), self.SECONDS
            )
            if len(found) < self.count:
                raise RankFailed("another rank ended")
            return [found[other] for other in range(self.count)]

    def end(self, rank: int) -> None:
        """Tell the others that a rank makes no more calls."""
        with self.changed:
            self.ended.add(rank)
            self.changed.notify_all()


class ThreadRanks(Ranks):
    """One of several ranks that are threads."""

    def __init__(self, rank: int, meeting: _Meeting) -> None:
        super().__init__(rank, meeting.count)
        object.__setattr__(self, "meeting", meeting)

    def all_reduce(self, tensor: Any) -> None:
        total = sum(self.meeting.exchange(self.rank, tensor.clone()))
        tensor.copy_(total)

    def all_to_all(self, tensor: Tensor) -> Tensor:
        every = self.meeting.exchange(self.rank, tensor.detach().clone())
        return torch.stack([sent[self.rank] for sent in every])

    def all_gather_stack(self, tensor: Tensor) -> Tensor:
        return torch.stack(self.meeting.exchange(self.rank, tensor.detach().clone()))

    def _gather_bytes(self, data: bytes) -> list[bytes]:
        return self.meeting.exchange(self.rank, data)


def on_ranks(count: int, act: Callable[[Ranks], Any]) -> list[Any]:
    """Call a function on each of `count` ranks; the first error that no other caused is raised."""
    meeting, errors = _Meeting(count), []

    def call(rank: int) -> Any:
        try:
            return act(ThreadRanks(rank, meeting))
        except BaseException as error:
            errors.append(error)
            return None
        finally:
            meeting.end(rank)

    with ThreadPoolExecutor(count) as pool:
        results = list(pool.map(call, range(count)))
    for error in sorted(errors, key=lambda one: isinstance(one, RankFailed)):
        raise error
    return results

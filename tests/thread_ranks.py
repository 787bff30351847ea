"""Ranks that are threads of one process: their collectives are real, their memory is shared."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rlhf_cli.distributed import Ranks
from rlhf_cli.errors import RankFailed


class _Meeting:
    """Where the ranks exchange values, one collective call after another."""

    SECONDS = 30.0

    def __init__(self, count: int) -> None:
        self.barrier, self.values = threading.Barrier(count), [None] * count

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """The values of all ranks; raises `RankFailed` where another rank has ended."""
        try:
            self.values[rank] = value
            self.barrier.wait(self.SECONDS)
            found = list(self.values)
            self.barrier.wait(self.SECONDS)
        except threading.BrokenBarrierError as error:
            raise RankFailed("another rank ended") from error
        return found


class ThreadRanks(Ranks):
    """One of several ranks that are threads."""

    def __init__(self, rank: int, meeting: _Meeting) -> None:
        super().__init__(rank, meeting.barrier.parties)
        object.__setattr__(self, "meeting", meeting)

    def all_reduce(self, tensor: Any) -> None:
        total = sum(self.meeting.exchange(self.rank, tensor.clone()))
        tensor.copy_(total)

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
            meeting.barrier.abort()
            return None

    with ThreadPoolExecutor(count) as pool:
        results = list(pool.map(call, range(count)))
    for error in sorted(errors, key=lambda one: isinstance(one, RankFailed)):
        raise error
    return results

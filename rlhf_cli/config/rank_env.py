"""The place of this process among those of a run, which environment variables give."""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RankEnv:
    """Rank of a process, as torchrun's environment variables give it.

    Attributes:
        rank: from 0.
        local_rank: rank on this machine; index of the GPU that the process uses.
        world_size: number of processes.
        local_world_size: number of processes on this machine; 0 where it is not known.
    """

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int = 0

    @property
    def is_on_one_machine(self) -> bool:
        """Whether all ranks are on this machine."""
        return self.local_world_size == self.world_size

    def variables(self) -> dict[str, str]:
        """Environment variables of this rank."""
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_WORLD_SIZE": str(self.local_world_size or self.world_size),
        }


def read_rank_env(variables: Mapping[str, str] = os.environ) -> RankEnv | None:
    """Read the rank of this process; None if it was not launched as one of several.

    A variable alone, as some shells export WORLD_SIZE, and a world of one process do not count.
    """
    try:
        rank, world_size = int(variables["RANK"]), int(variables["WORLD_SIZE"])
        local_rank = int(variables.get("LOCAL_RANK", rank))
        local_world_size = int(variables.get("LOCAL_WORLD_SIZE", 0))
    except (KeyError, ValueError):
        return None
    return RankEnv(rank, local_rank, world_size, local_world_size) if world_size > 1 else None


def is_first_process(variables: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is rank 0, or was not launched as one of several."""
    own = read_rank_env(variables)
    return own is None or own.rank == 0

"""What a launcher tells a process about its place, in torchrun's variables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from rlhf_cli.cores import cores


@dataclass(frozen=True)
class Place:
    """One process among several."""

    rank: int
    local_rank: int
    """Its number on its own machine: which GPU it takes."""

    size: int

    def variables(self) -> dict[str, str]:
        """The same in the words that libraries look for."""
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_WORLD_SIZE": str(self.size),
        }


def place(variables: Mapping[str, str] = os.environ) -> Place | None:
    """This process's place, or none: nobody launched it as one of several."""
    try:
        rank, size = int(variables["RANK"]), int(variables["WORLD_SIZE"])
        local_rank = int(variables.get("LOCAL_RANK", rank))
    except (KeyError, ValueError):
        return None
    return Place(rank, local_rank, size) if size > 1 else None


def threads(processes: int) -> str:
    """Threads of each process, unless the user said how many: they share the cores."""
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // processes))

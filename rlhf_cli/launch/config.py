from dataclasses import dataclass
from typing import Annotated

from rlhf_cli.config.schema import Ge, RuntimeOnly


@dataclass(kw_only=True)
class LaunchConfig:
    """Processes that train one model together (data parallel)."""

    processes: Annotated[int, Ge(0), RuntimeOnly()] = 1
    """Number of processes on this machine: one per GPU, or sharing the cores of a CPU. 0 uses all
    GPUs. The result equals that of one process up to rounding. A run is resumed with the number
    that it started with."""

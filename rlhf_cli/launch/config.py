from dataclasses import dataclass
from typing import Annotated

from rlhf_cli.config.schema import Ge, RuntimeOnly


@dataclass(kw_only=True)
class LaunchConfig:
    """Several processes that train one model together."""

    processes: Annotated[int, Ge(0), RuntimeOnly()] = 1
    """Processes on this machine: one for each GPU, or sharing the cores of a CPU. 0 takes as many
    as there are GPUs. The result is that of one process up to rounding; a run is continued with the
    number that it began with."""

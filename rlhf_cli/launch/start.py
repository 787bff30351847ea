"""Run a stage in several processes: those of another launcher, or our own."""

import sys
from pathlib import Path
from typing import Any

from rlhf_cli.cores import cores
from rlhf_cli.errors import ConfigError
from rlhf_cli.launch import outer
from rlhf_cli.launch.environment import place, threads
from rlhf_cli.launch.parent import run_ranks
from rlhf_cli.launch.task import Task


def alone(processes: int) -> bool:
    """Whether the run is this process and no other."""
    return place() is None and (processes == 1 or (processes == 0 and _gpus() < 2))


def start(stage: str, tree: dict[str, Any], out: Path) -> dict[str, Any]:
    """Prepare a run here, then train in all processes.

    Args:
        stage: its name in the registry; its runner's module has a `prepare(cfg, out)` too, which
            leaves all that ranks must not make each for itself.
        tree: the resolved configuration.
        out: the run folder, claimed.

    Returns:
        What the manifest tells of the run.
    """
    task = Task(stage, tree, str(out))
    own = place()
    if own is not None:
        return outer.lead(task, own)
    size = _size(tree["launch"]["processes"])
    task.prepare()
    print(f"processes: {size}, {threads(size)} threads each", file=sys.stderr, flush=True)
    return run_ranks(task, size)


def _size(processes: int) -> int:
    gpus = _gpus()
    if gpus and processes > gpus:
        raise ConfigError(
            f"launch.processes: got {processes}, but there are {gpus} GPUs, one for each process. "
            f"Try launch.processes={gpus}"
        )
    most = max(2, cores())
    if not gpus and processes > most:  # each holds the whole model
        raise ConfigError(
            f"launch.processes: got {processes}, but there are {most} cores and no GPU; need at "
            f"most one process a core. Try launch.processes={most}"
        )
    return processes or gpus


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0

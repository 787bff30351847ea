"""Processes that srun starts: their ranks, and the lock of a job that was requeued."""

import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from rlhf_cli.console import logger
from rlhf_cli.cores import cores
from rlhf_cli.launch.slurm import cluster
from rlhf_cli.runs import lock

FIRST_PORT, PORTS = 10_000, 20_000
"""Range of ports below those that Linux gives to outgoing connections (from 32768)."""

POLL_SECONDS = 5.0


def set_rank_variables() -> None:
    """Set torchrun's variables in this process if srun started it as one task of several."""
    for name, value in rank_variables(os.environ).items():
        os.environ.setdefault(name, value)


def rank_variables(given: Mapping[str, str]) -> dict[str, str]:
    """Convert Slurm's variables to those of torchrun.

    A shell in a job has Slurm's variables too, but no step of its own; one of `srun --pty` has a
    terminal.

    Args:
        given: environment variables of this process.

    Returns:
        Nothing for a process that is no task of several, or has torchrun's variables.
    """
    step, tasks = given.get("SLURM_STEP_ID", ""), given.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" in given or not step.isdigit() or tasks == "1" or "SLURM_PTY_PORT" in given:
        return {}
    local = tasks_on_node(given.get("SLURM_STEP_TASKS_PER_NODE", tasks), int(given["SLURM_NODEID"]))
    port = FIRST_PORT + (8 * int(given["SLURM_JOB_ID"]) + int(step)) % PORTS
    return {
        "RANK": given["SLURM_PROCID"],
        "LOCAL_RANK": given["SLURM_LOCALID"],
        "WORLD_SIZE": tasks,
        "LOCAL_WORLD_SIZE": str(local),
        "MASTER_ADDR": _address(first_host(given["SLURM_STEP_NODELIST"])),
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": given.get("SLURM_CPUS_PER_TASK") or str(max(1, cores() // local)),
    }


def first_host(nodes: str) -> str:
    """First name of a list of nodes as Slurm writes it: `gpu07` of `gpu[07-09,12],login1`."""
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes).partition(",")[0]


def _address(node: str) -> str:
    """Name of a node if it is one in the network, else the address by which Slurm knows it."""
    try:
        socket.getaddrinfo(node, None)
    except OSError:
        return cluster.node_address(node) or node
    return node


def tasks_on_node(counts: str, node: int) -> int:
    """Number of tasks on a node, from a text as `8(x2),4`: 8 on nodes 0 and 1, 4 on node 2."""
    for part in counts.split(","):
        count, _, repeated = part.partition("(x")
        node -= int(repeated.rstrip(")") or 1)
        if node < 0:
            return int(count)
    raise ValueError(f"{counts!r} has no node {node}")


def wait_for_former_start(out: Path) -> None:
    """In a requeued job, wait until the lock of a killed start on another machine is stale.

    A start that ended in order has released it.
    """
    if not os.environ.get("SLURM_RESTART_COUNT") or not lock.is_held(out):
        return
    seconds = lock.STALE_SECONDS + lock.BEAT_SECONDS
    logger.info(f"waiting up to {seconds:.0f} s for the lock of this job's former start: {out}")
    end = time.monotonic() + seconds
    while lock.is_held(out) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)

"""Several real processes in a test, each of which runs one module."""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch.distributed as dist

STORE = "RLHF_TEST_STORE"
"""Environment variable: the file through which the processes find each other."""


def run_ranks(module: str, count: int, folder: Path, *words: str, seconds: float = 280) -> None:
    """Run a module in several processes; each calls `join`. The first failure ends all.

    Args:
        module: name of the module.
        count: number of processes.
        folder: new; for their logs.
        words: command line of each.
        seconds: after which they are ended.
    """
    folder.mkdir()
    logs = [folder / f"{rank}.log" for rank in range(count)]
    ranks = [_start(module, rank, count, log, words) for rank, log in enumerate(logs)]
    until = time.monotonic() + seconds
    try:
        while any(rank.poll() is None for rank in ranks) and time.monotonic() < until:
            if any(rank.poll() for rank in ranks):
                break
            time.sleep(0.05)
        ends = [rank.poll() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert ends == [0] * count, "\n".join(log.read_text()[-3000:] for log in logs)


def _start(
    module: str, rank: int, count: int, log: Path, words: tuple[str, ...]
) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        STORE: str(log.parent / "store"),
    }
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", module, *words], env=environment, stdout=file, stderr=file
        )


def join() -> None:
    """Join the other processes of `run_ranks`."""
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", f"file://{os.environ[STORE]}", rank=rank, world_size=count)

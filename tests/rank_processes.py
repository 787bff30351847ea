"""Several real processes in a test, each of which runs one module."""

import os
import subprocess
import sys


def run_ranks(module: str, count: int, *words: str, timeout: float = 240) -> None:
    """Run a module in several processes that find each other.

    Args:
        module: calls `init_process_group`.
        count: number of processes.
        words: command line of each.
        timeout: seconds.
    """
    options = ["--standalone", f"--nproc-per-node={count}", "-m", module]
    command = [sys.executable, "-m", "torch.distributed.run", *options, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

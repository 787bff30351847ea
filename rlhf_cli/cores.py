"""Number of CPU cores that this process may use, and how torch's threads wait on them."""

import math
import os
import time
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
LOAD = Path("/proc/loadavg")
"""Fourth field `RUNNING/ALL`: number of threads that run or wait for a core, on the machine."""

LOAD_SAMPLES = 5


def cores() -> int:
    """Number of cores that this process may run on, or its container's CPU quota if smaller.

    Torch counts the machine's cores; threads beyond the quota only wait for each other.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, math.ceil(min(allowed or 1, _cpu_quota())))


def limit_thread_spinning() -> None:
    """Shorten the spinning of torch's waiting threads if other programs need the cores.

    Threads of libgomp spin at the end of each parallel region, on a core that the thread they wait
    for may need. Spinning is faster if nothing else runs (`benchmarks/spinning.py` measures both).
    Libgomp reads the variables when torch is loaded; the user's settings are kept.
    """
    if "OMP_WAIT_POLICY" not in os.environ and _is_machine_busy():
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _is_machine_busy() -> bool:
    """Whether another thread runs or waits for a core, in each of a few samples."""
    running = []
    for _ in range(LOAD_SAMPLES):
        try:
            running.append(int(LOAD.read_text().split()[3].partition("/")[0]))
        except (OSError, ValueError, IndexError):  # not on Linux
            return False
        time.sleep(0.002)
    return min(running) > 1


def _cpu_quota() -> float:
    """CPU quota of the container in cores, from cgroups v2 or v1; infinity without a limit."""
    try:
        if (CGROUP / "cpu.max").is_file():
            quota, period = (CGROUP / "cpu.max").read_text().split()
        else:
            quota = (CGROUP / "cpu/cpu.cfs_quota_us").read_text()
            period = (CGROUP / "cpu/cpu.cfs_period_us").read_text()
        return math.inf if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError):  # no cgroups, or not readable
        return math.inf

"""How many cores this process may use."""

import math
import os
import time
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
LOAD = Path("/proc/loadavg")
"""Its fourth word is `RUNNING/ALL`: the threads of the machine that run or wait for a core."""

LOOKS = 5


def cores() -> int:
    """Those it may run on, or fewer where a container's share of their time is smaller.

    Threads beyond a container's share wait for each other: torch counts the machine's cores.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, math.ceil(min(allowed or 1, _share())))


def limit_thread_spinning() -> None:
    """Beside other work, let threads of torch that wait for each other give up their core soon.

    libgomp's threads spin at the end of each parallel region, on a core that the thread they wait
    for may need; where nothing else runs, spinning is faster (`benchmarks/spinning.py` has both).
    Read when torch is loaded; what the user set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ and _others_run():
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _others_run() -> bool:
    """Whether something beside this process wants a core now, at each of a few looks."""
    running = []
    for _ in range(LOOKS):
        try:
            running.append(int(LOAD.read_text().split()[3].partition("/")[0]))
        except (OSError, ValueError, IndexError):  # no Linux
            return False
        time.sleep(0.002)
    return min(running) > 1


def _share() -> float:
    """Cores' worth of time that the container gets, by the second or the first kind of cgroups."""
    try:
        if (CGROUP / "cpu.max").is_file():
            quota, period = (CGROUP / "cpu.max").read_text().split()
        else:
            quota = (CGROUP / "cpu/cpu.cfs_quota_us").read_text()
            period = (CGROUP / "cpu/cpu.cfs_period_us").read_text()
        return math.inf if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError):  # no cgroups, or none that we can read
        return math.inf

"""How many cores this process may use."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """Those it may run on, or fewer where a container's share of their time is smaller.

    Threads beyond a container's share wait for each other: torch counts the machine's cores.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, math.ceil(min(allowed or 1, _share())))


def yield_cores() -> None:
    """Let threads of torch that wait for each other give up their core soon.

    libgomp's threads spin at the end of each parallel region, on a core that the thread they wait
    for may need; see `benchmarks/spinning.py`. Read when torch is loaded; what the user set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


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

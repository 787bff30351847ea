"""What threads cost that spin while they wait, on a quiet machine and beside other work.

    python -m benchmarks.spinning [--seconds 4] [--rounds 3]

Forward and backward passes of four small layers on two threads, in a process of its own for each of
libgomp's ways to wait, in turns: its own default, 1,000 rounds (what `rlhf` sets where other work
runs when it starts), and none. The other work is as many processes as there are cores, each in a
loop.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

from benchmarks.common import save, spread
from rlhf_cli.cores import cores

WAYS = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "libgomp's default": {},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}
OTHERS = {"quiet": 0, "beside other work": cores()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(milliseconds(given.seconds))
        return
    found: dict[str, dict[str, list[float]]] = {}
    for state, others in OTHERS.items():
        found[state] = {way: [] for way in WAYS}
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
        try:
            for _ in range(given.rounds):
                for way, changes in WAYS.items():
                    found[state][way].append(measured(changes, given.seconds))
                    print(f"{state}, {way}: {found[state][way][-1]:.1f} ms", flush=True)
        finally:
            for process in busy:
                process.kill()
    save("spinning", found)
    print(f"\n| ms a pass | {' | '.join(OTHERS)} |\n|---|{'---|' * len(OTHERS)}")
    for way in WAYS:
        print(f"| {way} | {' | '.join(spread(found[state][way]) for state in OTHERS)} |")


def measured(changes: dict[str, str], seconds: float) -> float:
    """Milliseconds of a pass in a process with these variables."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-m", "benchmarks.spinning", "--measure", "--seconds", str(seconds)]
    environment = {**kept, "OMP_NUM_THREADS": "2", **changes}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def milliseconds(seconds: float) -> float:
    """The mean of passes over so many seconds."""
    import torch
    from torch import nn

    layers = [(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 128)) for _ in range(4)]
    model = nn.Sequential(*[part for layer in layers for part in layer])
    given = torch.randn(1000, 128)
    times = []
    ends = time.monotonic() + seconds
    while len(times) < 3 or time.monotonic() < ends:
        began = time.perf_counter()
        model(given).square().mean().backward()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.fmean(times[1:])


if __name__ == "__main__":
    main()

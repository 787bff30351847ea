"""One implementation of the log-prob primitive on one shape; prints times and memory as JSON."""

import json
import sys

import torch

from benchmarks import heads
from benchmarks.memory import forget_peak, held_bytes, peak_bytes

WARM = (64, 64, 512)
"""What is compiled or loaded at a first pass is not the implementation's memory."""


def main(name: str, sizes: str, dtype: str, device: str, passes: str) -> None:
    place, kind = torch.device(device), getattr(torch, dtype)
    tokens, width, vocab = map(int, sizes.split("x"))
    if name == heads.PRODUCTS:
        hidden, weight, _ = heads.operands((tokens, width, vocab), kind, place)
        times = [heads.limit(hidden, weight) for _ in range(int(passes) + 1)]
        print(json.dumps({"seconds": times[1:]}))
        return
    run = heads.find(name)
    heads.once(run, WARM, kind, place)
    given = heads.operands((tokens, width, vocab), kind, place)
    forget_peak(place)
    before = held_bytes(place)
    found = [heads.pass_of(run, *given) for _ in range(int(passes) + 1)]
    result = {
        "seconds": [seconds for seconds, _ in found[1:]],  # kernels of this shape are compiled once
        "extra_mb": (peak_bytes(place) - before) / 2**20,
        "logp": found[0][1],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])

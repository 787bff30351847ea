"""The log-prob primitive, forward and backward: ours and the peers' beside each other, in turns.

    bash benchmarks/install_peers.sh
    python -m benchmarks.primitive [--rounds 1] [--passes 1] [--shapes 4096x288x8192]
        [--types bfloat16] [--device cuda]

Each run is a process of its own, so that its memory is what it takes beside the operands. The
weight's gradient has to be made by any; the bound is that and 64 MB. The limit is the time of the
four matrix products alone, into memory that is there.
"""

import argparse
import statistics
from typing import Any

import torch

from benchmarks import heads
from benchmarks.common import SCRATCH, child, save, spread

SHAPES = {
    "cpu": ("4096x288x8192", "4096x288x32000", "1024x896x151936"),
    "cuda": ("8192x896x151936", "8192x4096x151936"),
}
TYPES = {"cpu": ("bfloat16", "float32"), "cuda": ("bfloat16",)}
"""On GPUs fp32 is for probes and tests: whole models are not trained in it."""

WORKSPACE_MB = 64

AGREE = 2e-3
"""Nats by which mean log-probs of implementations may differ: bf16 logits have 3 digits."""

HEAD = """
| tokens x width x vocabulary | type | | ms | of the limit | {name} takes | MB | bound, MB |
|---|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--passes", type=int, default=1, help="of a round that are timed")
    parser.add_argument("--device", choices=SHAPES, default="cpu")
    parser.add_argument("--shapes", nargs="+")
    parser.add_argument("--types", nargs="+", choices=TYPES["cpu"])
    given = parser.parse_args()
    SCRATCH.mkdir(parents=True, exist_ok=True)
    shapes, types = given.shapes or SHAPES[given.device], given.types or TYPES[given.device]
    results = []
    for shape in shapes:
        for dtype in types:
            results.append(measure(shape, dtype, given.device, given.rounds, given.passes))
            save("primitive" if given.device == "cpu" else "primitive_cuda", {"results": results})
    preferred = heads.names(torch.device(given.device))[0]
    print(HEAD.format(name=preferred))
    for result in results:
        tell(result, preferred)


def measure(shape: str, dtype: str, device: str, rounds: int, passes: int) -> dict[str, Any]:
    """Seconds and MB of every implementation that runs on the device."""
    names = heads.names(torch.device(device))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            path = "build/peers/trl-1.16.0" if name == "trl" else ""
            argv = (name, shape, dtype, device, str(passes))
            runs[name].append(child("benchmarks.workers.primitive", *argv, path=path))
            print(shape, dtype, name, runs[name][-1], flush=True)
    require_alike({name: found[0]["logp"] for name, found in runs.items() if "logp" in found[0]})
    _, width, vocab = map(int, shape.split("x"))
    gradient = vocab * width * getattr(torch, dtype).itemsize / 2**20
    seconds = {name: [s for run in found for s in run["seconds"]] for name, found in runs.items()}
    return {
        "shape": shape,
        "dtype": dtype,
        "limit": min(seconds.pop(heads.PRODUCTS)),
        "seconds": seconds,
        "extra_mb": {name: max(run["extra_mb"] for run in runs[name]) for name in seconds},
        "bound_mb": gradient + WORKSPACE_MB,
    }


def require_alike(logp: dict[str, float]) -> None:
    """Refuse to compare implementations that compute something else."""
    if max(logp.values()) - min(logp.values()) > AGREE:
        raise SystemExit(f"mean log-probs differ: {logp}")


def tell(found: dict[str, Any], preferred: str) -> None:
    """Print the lines of one shape and type."""
    for name, took in found["seconds"].items():
        ours = found["seconds"][preferred]
        ratios = [other / own for other, own in zip(took, ours, strict=True)]
        cells = [
            found["shape"],
            found["dtype"],
            heads.PEERS.get(name, name),
            spread([1e3 * seconds for seconds in took]),
            f"{found['limit'] / statistics.median(took):.0%}",
            "" if name == preferred else f"{spread(ratios)} times less",
            f"{found['extra_mb'][name]:,.0f}",
            f"{found['bound_mb']:,.0f}",
        ]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

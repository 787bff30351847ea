"""The log-prob primitive, forward and backward: every implementation that runs here, in turns.

python -m benchmarks.primitive [--rounds 3] [--device cuda]
"""

import argparse
import statistics
import time
from typing import Any

import torch

from benchmarks.common import save, spread
from rlhf_cli.kernels.head import Head
from rlhf_cli.kernels.registry import LINEAR_LOGPROBS

SHAPES = {
    "cpu": ((4096, 288, 8192), (4096, 288, 32000), (1024, 896, 151936)),
    "cuda": ((8192, 896, 151936), (8192, 4096, 151936)),
}
TYPES = {"cpu": (torch.bfloat16, torch.float32), "cuda": (torch.bfloat16,)}
"""On GPUs fp32 is for probes and tests: whole models are not trained in it."""


def once(run, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of one forward and backward pass, gradients to hidden states and weight."""
    tokens, width, vocab = shape
    make = {"dtype": dtype, "device": device}
    hidden = torch.randn(tokens, width, **make).requires_grad_()
    weight = (torch.randn(vocab, width, **make) * 0.05).requires_grad_()
    targets = torch.randint(0, vocab, (tokens,), device=device)
    settle(device)
    began = time.monotonic()
    out = run(hidden, Head(weight), targets, temperature=1.0, want=frozenset())
    out.logp.sum().backward()
    settle(device)
    return time.monotonic() - began


def settle(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def limit(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> float:
    """Seconds that four matrix products of this size take alone, into memory that is there."""
    tokens, width, vocab = shape
    make = {"dtype": dtype, "device": device}
    hidden, weight = torch.randn(tokens, width, **make), torch.randn(vocab, width, **make)
    tiles = weight.split(vocab // 8 + 1)[:-1]
    out = torch.empty(tokens, len(tiles[0]), **make)
    times = []
    for _ in range(3):
        settle(device)
        began = time.monotonic()
        for tile in tiles:
            torch.mm(hidden, tile.t(), out=out)
        settle(device)
        times.append(time.monotonic() - began)
    return 4 * min(times) * vocab / (len(tiles) * len(tiles[0]))


def peak_gib(device: torch.device) -> float:
    """Most memory that was held at once since the last call, operands included; 0 on CPUs."""
    if device.type != "cuda":
        return 0.0
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def measure(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, rounds: int
) -> dict[str, Any]:
    """Times in seconds and peaks of every implementation that runs on the device, in turns."""
    here = [i for i in LINEAR_LOGPROBS if not i.obstacle(device)]
    times: dict[str, list[float]] = {i.name: [] for i in here}
    peaks = {}
    for _ in range(rounds + 1):
        for implementation in here:
            peak_gib(device)
            times[implementation.name].append(once(implementation.run, shape, dtype, device))
            peaks[implementation.name] = peak_gib(device)
    return {
        "shape": shape,
        "dtype": str(dtype).removeprefix("torch."),
        "times": {name: values[1:] for name, values in times.items()},  # the first compiles
        "peak_gib": peaks,
        "limit": limit(shape, dtype, device),
    }


def tell(found: dict[str, Any]) -> None:
    """Print one result."""
    least, times = found["limit"], found["times"]
    print(f"{'x'.join(map(str, found['shape']))} {found['dtype']}: products {1e3 * least:.0f} ms")
    for name, took in times.items():
        ratios = [e / t for e, t in zip(times["eager"], took, strict=True)]
        print(
            f"  {name:8} {spread([1e3 * t for t in took])} ms, eager / {name} {spread(ratios)}, "
            f"{least / statistics.median(took):.0%} of the products' speed, "
            f"peak {found['peak_gib'][name]:.1f} GiB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=SHAPES, default="cpu")
    given = parser.parse_args()
    device, results = torch.device(given.device), []
    for shape in SHAPES[device.type]:
        for dtype in TYPES[device.type]:
            results.append(measure(shape, dtype, device, given.rounds))
            tell(results[-1])
    save("primitive" if device.type == "cpu" else "primitive_cuda", {"results": results})


if __name__ == "__main__":
    main()

"""The log-prob primitive, forward and backward, beside plain full logits; in turns.

python -m benchmarks.primitive [--rounds 3]
"""

import argparse
import statistics
import time

import torch

from benchmarks.common import save, spread
from rlhf_cli.kernels.head import Head
from rlhf_cli.kernels.registry import LINEAR_LOGPROBS

HERE = [i for i in LINEAR_LOGPROBS if not i.obstacle(torch.device("cpu"))]

SHAPES = ((4096, 288, 8192), (4096, 288, 32000), (1024, 896, 151936))


def once(run, tokens: int, width: int, vocab: int, dtype: torch.dtype) -> float:
    """Seconds of one forward and backward pass, gradients to hidden states and weight."""
    hidden = torch.randn(tokens, width).to(dtype).requires_grad_()
    weight = (torch.randn(vocab, width) * 0.05).to(dtype).requires_grad_()
    targets = torch.randint(0, vocab, (tokens,))
    began = time.monotonic()
    out = run(hidden, Head(weight), targets, temperature=1.0, want=frozenset())
    out.logp.sum().backward()
    return time.monotonic() - began


def limit(tokens: int, width: int, vocab: int, dtype: torch.dtype) -> float:
    """Seconds that four matrix products of this size take alone, into memory that is there."""
    hidden, weight = torch.randn(tokens, width).to(dtype), torch.randn(vocab, width).to(dtype)
    tiles = weight.split(vocab // 8 + 1)[:-1]
    out = torch.empty(tokens, len(tiles[0]), dtype=dtype)
    times = []
    for _ in range(3):
        began = time.monotonic()
        for tile in tiles:
            torch.mm(hidden, tile.t(), out=out)
        times.append(time.monotonic() - began)
    return 4 * min(times) * vocab / (len(tiles) * len(tiles[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    results = []
    for shape in SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            times: dict[str, list[float]] = {i.name: [] for i in HERE}
            for _ in range(rounds + 1):
                for implementation in HERE:
                    times[implementation.name].append(once(implementation.run, *shape, dtype))
            times = {name: values[1:] for name, values in times.items()}
            ratios = [e / c for e, c in zip(times["eager"], times["chunked"], strict=True)]
            share = limit(*shape, dtype) / statistics.median(times["chunked"])
            name = str(dtype).removeprefix("torch.")
            print(
                f"{'x'.join(map(str, shape)):18} {name:9} chunked {spread(times['chunked'])} s, "
                f"eager / chunked {spread(ratios)}, {share:.0%} of the products' speed",
                flush=True,
            )
            results.append({"shape": shape, "dtype": name, "times": times, "limit_share": share})
    save("primitive", {"results": results})


if __name__ == "__main__":
    main()

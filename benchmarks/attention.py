"""Attention over rows kept apart, forward and backward: plain products beside SDPA, in turns.

python -m benchmarks.attention [--rounds 5]
"""

import argparse
import time

import torch

from benchmarks.common import save, spread
from rlhf_cli.models import attention

SHAPES = ((32, 4, 36, 32), (16, 6, 180, 48), (8, 6, 360, 48), (8, 9, 512, 64), (4, 9, 1024, 64))
"""Rows, heads, tokens a row, head width."""


def once(shape: tuple[int, int, int, int], dtype: torch.dtype, products: bool) -> float:
    rows, heads, length, width = shape
    q, k, v = (
        torch.randn(1, heads, rows * length, width).to(dtype).requires_grad_() for _ in range(3)
    )
    attention._products_are_faster = lambda tensor, length: products
    layout = attention.RowLayout((length,) * rows)
    began = time.monotonic()
    out, _ = attention.per_row_attention(torch.nn.Identity(), q, k, v, None, row_layout=layout)
    out.sum().backward()
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    results = []
    for shape in SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            times: dict[str, list[float]] = {"products": [], "sdpa": []}
            for _ in range(rounds + 1):
                times["products"].append(once(shape, dtype, True))
                times["sdpa"].append(once(shape, dtype, False))
            times = {name: values[1:] for name, values in times.items()}
            ratios = [s / p for s, p in zip(times["sdpa"], times["products"], strict=True)]
            name = str(dtype).removeprefix("torch.")
            print(f"{'x'.join(map(str, shape)):14} {name:9} sdpa / products {spread(ratios)}")
            results.append({"shape": shape, "dtype": name, "times": times, "ratios": ratios})
    save("attention", {"results": results})


if __name__ == "__main__":
    main()

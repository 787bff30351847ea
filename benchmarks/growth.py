"""How time and memory of a step grow: with tokens a row, rows, vocabulary and samples to a prompt.

    python -m benchmarks.growth [--only tokens rows] [--most 512] [--runs 2] [--precision float32]

Forward, backward and AdamW of an 8.3 M Llama on random tokens, in micro-batches of at most 4,096
tokens as on any CPU; each point is a process of its own. Beside the measured figures stand those of
the formulas: the step's products at the speed that a large product reaches here and now, and the
bytes of weights, gradients, moments and activations.
"""

import argparse
import statistics
from typing import Any

from benchmarks.common import SCRATCH, child, save, spread
from benchmarks.steps import PROMPT, RESPONSE

VOCABULARY = 8192

AXES: dict[str, dict[int, tuple[int, int, int, int]]] = {
    "tokens": {n: (n, 8192 // n, VOCABULARY, 0) for n in (128, 256, 512, 1024, 2048, 4096)},
    "rows": {n: (256, n, VOCABULARY, 0) for n in (4, 8, 16, 32, 64)},
    "vocabulary": {n << 10: (256, 16, n << 10, 0) for n in (8, 16, 32, 64, 128)},
    "samples": {n: (PROMPT + RESPONSE, 8 * n, VOCABULARY, n) for n in (1, 2, 4, 8)},
}
"""Of each axis, what a point is called, and its tokens a row, rows, vocabulary and samples.

With more tokens a row the step keeps its 8,192 tokens; to each of 8 prompts of 256 tokens there are
more samples of 64."""

HEAD = """
| | | s a step | s by the formula | of the limit | MB | MB by the formula |
|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--most", type=int, help="leave out what is further on an axis")
    parser.add_argument("--runs", type=int, default=2, help="of a step that are timed")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    given = parser.parse_args()
    SCRATCH.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[int, Any]] = {}
    for axis in given.only:
        results[axis] = {}
        for name, point in AXES[axis].items():
            if given.most is None or name <= given.most:
                argv = (*map(str, point), given.precision, str(given.runs))
                results[axis][name] = child("benchmarks.workers.growth", *argv)
                print(axis, name, results[axis][name], flush=True)
                save("growth", {"precision": given.precision, "axes": results})
    print(HEAD)
    for axis, points in results.items():
        for name, found in points.items():
            tell(axis, name, found)


def tell(axis: str, name: int, found: dict[str, Any]) -> None:
    """Print a line of the table."""
    least = found["seconds_of_products"]
    cells = [
        axis,
        f"{name:,}",
        spread(found["seconds"]),
        f"{least:.2f}",
        f"{least / statistics.median(found['seconds']):.0%}",
        f"{found['extra_mb']:,.0f}",
        f"{found['formula_mb']:,.0f}",
    ]
    print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

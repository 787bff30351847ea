"""One stage of ours and TRL's trainer in turns, each run a process of its own; what came out."""

import argparse
import statistics

from benchmarks.common import SHAPES, child, save, spread

Runs = dict[str, list[dict[str, float]]]

BATCH, LONGEST = 16, 512
"""Examples of a step, and the bound of their rows in tokens."""

PRECISIONS = ("bf16", "fp32")


def options(doc: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=13)
    parser.add_argument("--shape", choices=SHAPES, default="8m", help="of the model")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    return parser


def in_turns(stage: str, version: str, argv: list[str], chosen: argparse.Namespace) -> Runs:
    """Run both sides once a round, in each precision.

    Args:
        stage: of ours; workers/STAGE_trl.py is the other side.
        version: of TRL.
        argv: of both workers, before the precision.
        chosen: how many rounds, and which precisions.
    """
    runs: Runs = {f"{name} {kind}": [] for kind in chosen.precisions for name in ("rlhf", "TRL")}
    for _ in range(chosen.rounds):
        for side in runs:
            name, precision = side.split()
            if name == "TRL":
                peer = f"benchmarks.workers.{stage}_trl"
                found = child(peer, *argv, precision, path=f"build/peers/trl-{version}")
            else:
                found = child("benchmarks.workers.rlhf", stage, *argv, precision)
            runs[side].append(found)
            print(side, found, flush=True)
    return runs


def best(runs: Runs, name: str) -> str:
    """The faster precision of `rlhf` or of `TRL`: one of the sides that ran."""
    mine = [side for side in runs if side.startswith(name)]
    return max(mine, key=lambda side: median(runs[side], "rows_per_second"))


def median(runs: list[dict[str, float]], key: str) -> float:
    """Of a figure over the rounds."""
    return statistics.median(run[key] for run in runs)


def report(name: str, runs: Runs, tokens: float, unit: str, shape: str, batch: int = BATCH) -> None:
    """Print speeds and memory, the better precision of each side beside the other's; save all.

    Args:
        name: of the result's file, to which another shape than the default is added.
        runs: what each side printed.
        tokens: of an example, on average.
        unit: what an example is.
        shape: of the model.
        batch: examples of a step.
    """
    print(f"\n{unit} of {tokens:.0f} tokens on average, batch {batch}; median (range)")
    for side in runs:
        speed = spread([run["rows_per_second"] for run in runs[side]])
        memory = spread([run["peak_memory_mb"] for run in runs[side]])
        print(f"{side:10} {speed:>24} {unit}/s {memory:>32} MB")
    ours, peer = (best(runs, of) for of in ("rlhf", "TRL"))
    pairs = zip(runs[ours], runs[peer], strict=True)
    ratios = [a["rows_per_second"] / b["rows_per_second"] for a, b in pairs]
    memory = median(runs[ours], "peak_memory_mb") / median(runs[peer], "peak_memory_mb")
    print(f"{ours} / {peer}: {spread(ratios)} times the {unit}/s, {memory:.2f} of the memory")
    file = name if shape == "8m" else f"{name}_{shape}"
    save(file, {"tokens_per_row": tokens, "batch": batch, "runs": runs, "ratios": ratios})

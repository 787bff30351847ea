"""Print what each stage of the tiny chain changed.

    python table.py RUNS STAGE...

Each stage's folder holds its manifest and `answers.jsonl`, its answers to the held-out prompts.
"""

import json
import sys
from pathlib import Path

import judge


def judged(answers: Path) -> float:
    """Mean points of the judge over the answers to the held-out prompts."""
    rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    points = judge.score(
        prompts=[row["prompt"] for row in rows], responses=[row["response"] for row in rows]
    )
    return sum(points) / len(points)


def main(runs: Path, stages: list[str]) -> None:
    """One line a stage: its held-out loss before and after, and its answers' points after."""
    print(f"\n{'stage':10} {'held-out loss':>20} {'accuracy':>18} {'judge':>12} {'seconds':>9}")
    for stage in stages:
        manifest = json.loads((runs / stage / "manifest.json").read_text(encoding="utf-8"))
        before, after = manifest["before"], manifest["after"]
        loss = f"{before['loss']:.3f} -> {after['loss']:.3f}"
        accuracy = f"{before['accuracy']:.0%} -> {after['accuracy']:.0%}"
        points = f"{judged(runs / stage / 'answers.jsonl'):.2f} of {judge.MAXIMUM:g}"
        print(f"{stage:10} {loss:>20} {accuracy:>18} {points:>12} {manifest['seconds']:>9.0f}")
    print(
        "\nheld-out loss: nats a trained token, on each stage's own test rows. judge: mean points "
        "of\nthe answers to the held-out prompts, sampled at temperature 0.7."
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

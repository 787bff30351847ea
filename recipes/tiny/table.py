"""Print what each stage of the tiny chain changed.

    python table.py RUNS STAGE...

Each stage's folder holds its manifest and, where it writes text, `answers.jsonl`: its answers to
the held-out prompts. Those of stages after sft are compared with sft's.
"""

import json
import sys
from pathlib import Path

import judge

from rlhf_cli.evaluation.metrics import count_wins

BASELINE = "sft"


def judged(folder: Path) -> list[float]:
    """The judge's points for each answer; none for a stage that writes none."""
    answers = folder / "answers.jsonl"
    if not answers.is_file():
        return []
    rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    return judge.score(
        prompts=[row["prompt"] for row in rows], responses=[row["response"] for row in rows]
    )


def against(points: list[float], baseline: list[float]) -> str:
    """Win rate with its interval, and the ties beside it."""
    wins = count_wins(points, baseline)
    rate = wins.rate
    return f"{rate.value:.0%} ({rate.low:.0%} to {rate.high:.0%}), {wins.ties} ties"


def rollouts(folder: Path) -> str:
    """How the reward model and the KL went on held-out prompts."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    before, after = manifest["before"], manifest["after"]
    return (
        f"ppo: the reward model's score {before['score']:.2f} -> {after['score']:.2f}, at a KL of "
        f"{after['kl']:.1f} nats a response"
    )


def main(runs: Path, stages: list[str]) -> None:
    """One line a stage: held-out loss before and after, points of its answers, wins over sft."""
    baseline = judged(runs / BASELINE)
    print(f"\n{'stage':10}{'held-out loss':>18}{'judge':>12}{'seconds':>9}  wins over {BASELINE}")
    for stage in stages:
        manifest = json.loads((runs / stage / "manifest.json").read_text(encoding="utf-8"))
        loss = f"{manifest['before']['loss']:.3f} -> {manifest['after']['loss']:.3f}"
        points = judged(runs / stage)
        mean = f"{sum(points) / len(points):.2f} of {judge.MAXIMUM:g}" if points else ""
        later = bool(points) and stages.index(stage) > stages.index(BASELINE)
        wins = against(points, baseline) if later else ""
        print(f"{stage:10}{loss:>18}{mean:>12}{manifest['seconds']:>9.0f}  {wins}".rstrip())
    if "ppo" in stages:
        print(f"\n{rollouts(runs / 'ppo')}")
    print(
        "\nheld-out loss: each stage's own, on its test rows. judge: mean points of the answers to "
        "the\nheld-out prompts, sampled at temperature 0.7. wins: answers with more points than "
        f"{BASELINE}'s\namong those that differ, with the 95 % interval."
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

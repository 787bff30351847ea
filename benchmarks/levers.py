"""What each lever of speed and memory gives: a step with it and without it, the others on.

    RLHF_DATA=... python -m benchmarks.levers [--only bf16] [--rounds 3] [--examples 16]
        [--no-memory]

An 8.3 M Llama on real rows: forward, backward, clipping and AdamW. Times are taken in one process,
in turns; a setting of the process, PPO's value model and all memory in processes of their own.
"""

import argparse
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from benchmarks import ppo, rollout
from benchmarks.beside import BATCH
from benchmarks.common import SCRATCH, child, save, spread
from benchmarks.steps import Settings, open_step
from rlhf_cli.context import configure_cpu

HEAD = """
| lever | of | with, ms | without, ms | times as fast | with, MB | without, MB |
|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Lever:
    """What is switched off.

    Attributes:
        stage: whose step.
        off: what differs without it.
        samples: to each prompt.
        alone: it is a setting of the process.
    """

    stage: str
    off: dict[str, Any] = field(default_factory=dict)
    samples: int = 1
    alone: bool = False


LEVERS = {
    "flat rows, not padded": Lever("sft", {"attention": "sdpa"}),
    "products in attention, not SDPA": Lever("sft", {"products": False}),
    "output layer at trained positions": Lever("sft", {"everywhere": True}),
    "log-probs in tiles": Lever("sft", {"kernels": "none"}),
    "rows of like length together": Lever("sft", {"by_length": False}),
    "bf16 under fp32 masters": Lever("sft", {"precision": "fp32"}),
    "fused AdamW": Lever("sft", {"fused": False}),
    "prompts of pairs once": Lever("dpo", {"shares": False}),
    "stored reference": Lever("dpo", {"stored": False}),
    "prompt of 4 samples once": Lever("samples", {"shares": False}, samples=4),
    "prompt of 8 samples once": Lever("samples", {"shares": False}, samples=8),
    "freed memory kept": Lever("sft", {"keep_freed": False}, alone=True),
    "128 compiled kernels, not 1,024": Lever("sft", {"kernel_cache": 1024}, alone=True),
}

SLOTS, VALUE = "responses in slots, not waves", "values from the policy's trunk"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=[*LEVERS, SLOTS, VALUE])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=BATCH, help="of a step")
    parser.add_argument("--no-memory", action="store_true", help="of levers timed in one process")
    given = parser.parse_args()
    names = given.only or [*LEVERS, SLOTS, VALUE]
    SCRATCH.mkdir(parents=True, exist_ok=True)
    configure_cpu()
    results: dict[str, Any] = {}
    memory: dict[Settings, float] = {}
    for name in names:
        results[name] = measure(name, given, memory)
        print(name, results[name], flush=True)
        save("levers", {"results": results})
    print(HEAD)
    for name, found in results.items():
        tell(name, found)


def measure(name: str, given: argparse.Namespace, memory: dict[Settings, float]) -> dict[str, Any]:
    """Seconds and MB with a lever and without it; MB of settings that were seen are in `memory`."""
    if name == SLOTS:
        return drawn(given.rounds, given.examples)
    if name == VALUE:
        return valued(given.rounds, given.examples)
    lever = LEVERS[name]
    count = max(1, given.examples // lever.samples) if lever.stage == "samples" else given.examples
    settings = Settings(lever.stage, count, samples=lever.samples)
    both = {"with": settings, "without": replace(settings, **lever.off)}
    of = f"{lever.stage}, {count} {'prompts' if lever.stage == 'samples' else 'examples'}"
    if lever.alone:
        return {"of": of, **in_processes(both, given.rounds)}
    found = {"of": of, "seconds": in_turns(both, given.rounds)}
    return found if given.no_memory else {**found, "mb": memory_of(both, memory)}


def in_turns(both: dict[str, Settings], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step, by side, in this process."""
    steps = {side: open_step(settings) for side, settings in both.items()}
    seconds: dict[str, list[float]] = {side: [] for side in both}
    for _ in range(rounds + 1):
        for side, step in steps.items():
            seconds[side].append(step.run())
    return {side: values[1:] for side, values in seconds.items()}  # the first compiles kernels


def in_processes(both: dict[str, Settings], rounds: int) -> dict[str, Any]:
    """Seconds and MB by side, each a process of its own."""
    runs = {side: alone(settings, rounds) for side, settings in both.items()}
    return {
        "seconds": {side: run["seconds"] for side, run in runs.items()},
        "mb": {side: run["peak_memory_mb"] for side, run in runs.items()},
    }


def alone(settings: Settings, rounds: int) -> dict[str, Any]:
    """What `workers/step.py` gives."""
    return child("benchmarks.workers.step", json.dumps(asdict(settings)), str(rounds))


def memory_of(both: dict[str, Settings], memory: dict[Settings, float]) -> dict[str, float]:
    """Peak MB by side; each setting once."""
    for settings in both.values():
        if settings not in memory:
            memory[settings] = alone(settings, 1)["peak_memory_mb"]
    return {side: memory[settings] for side, settings in both.items()}


def drawn(rounds: int, batch: int) -> dict[str, Any]:
    """Seconds of a thousand useful tokens, with a stand-in for ends of responses."""
    found = rollout.measure(8192, torch.bfloat16, batch, rounds)
    sides = {"with": found["slots"], "without": found["generate"]}
    seconds = {side: [1000 / speed for speed in speeds] for side, speeds in sides.items()}
    return {"of": f"1,000 tokens, {batch} responses at a time", "seconds": seconds}


def valued(rounds: int, batch: int) -> dict[str, Any]:
    """Seconds of a rollout and its updates with a value head, and with a whole value model."""
    model, reward, rows, _ = ppo.prepare(2 * batch, "8m")
    common = [f"reward.model={reward}", f"batch_size={batch}", "max_new_tokens=53"]
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    memory = {"with": 0.0, "without": 0.0}
    for _ in range(rounds):
        for side, value in (("with", "shared"), ("without", "model")):
            argv = ["ppo", model, rows, *common, f"value={value}", "bf16"]
            run = child("benchmarks.workers.rlhf", *argv)
            seconds[side].append(batch / run["rows_per_second"])
            memory[side] = max(memory[side], run["peak_memory_mb"])
    return {"of": f"ppo, {batch} responses", "seconds": seconds, "mb": memory}


def tell(name: str, found: dict[str, Any]) -> None:
    """Print a line of the table."""
    seconds, memory = found["seconds"], found.get("mb", {})
    pairs = zip(seconds["without"], seconds["with"], strict=True)
    cells = [
        name,
        found["of"],
        *(spread([1e3 * s for s in seconds[side]]) for side in ("with", "without")),
        spread([without / own for without, own in pairs]),
        *(f"{memory[side]:,.0f}" if memory else "" for side in ("with", "without")),
    ]
    print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

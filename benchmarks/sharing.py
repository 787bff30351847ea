"""What computing a prompt once gives: by its share of each row, and by the rows to a prompt.

    RLHF_DATA=... python -m benchmarks.sharing [--rounds 3] [--rows 16]

A step of the 8.3 M Llama on rows of 320 tokens, likelihood of the responses; with each row computed
whole and with the prompt computed once, in one process, in turns.
"""

import argparse

from benchmarks.common import SCRATCH, save, spread
from benchmarks.levers import in_turns
from benchmarks.steps import Settings
from rlhf_cli.context import configure_cpu

LENGTH = 320
PROMPTS = (64, 160, 256, 288)
"""Tokens of a prompt; the rest of a row is its response."""

SAMPLES = (2, 4, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=16, help="of a step")
    given = parser.parse_args()
    SCRATCH.mkdir(parents=True, exist_ok=True)
    configure_cpu()
    results = {}
    print("| rows to a prompt | " + " | ".join(f"{p / LENGTH:.0%}" for p in PROMPTS) + " |")
    print("|---" * (len(PROMPTS) + 1) + "|")
    for samples in SAMPLES:
        ratios = [measure(samples, prompt, given) for prompt in PROMPTS]
        results[samples] = dict(zip(PROMPTS, ratios, strict=True))
        print(f"| {samples} | " + " | ".join(map(spread, ratios)) + " |", flush=True)
        save("sharing", {"rows": given.rows, "length": LENGTH, "times_as_fast": results})


def measure(samples: int, prompt: int, given: argparse.Namespace) -> list[float]:
    """Seconds with each row whole over those with the prompt computed once."""
    sizes = {"samples": samples, "prompt": prompt, "response": LENGTH - prompt}
    both = {
        side: Settings("samples", given.rows // samples, shares=shares, **sizes)
        for side, shares in (("once", True), ("whole", False))
    }
    found = in_turns(both, given.rounds)
    return [whole / once for whole, once in zip(found["whole"], found["once"], strict=True)]


if __name__ == "__main__":
    main()

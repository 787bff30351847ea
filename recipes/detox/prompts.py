"""Write the toxic prompts of allenai/real-toxicity-prompts as rows for `rlhf ppo`.

    python prompts.py OUTPUT.jsonl

As in TRL's example: rows whose prompt has a toxicity above 0.3, each with the start of its
continuation, the last fifth of them left out for measurements.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

TOXICITY = 0.3
"""Of a prompt, by the score that the data set gives it, from 0 to 1; some have none."""

WORDS = 27
"""Kept of prompt and continuation; the example keeps 30 to 40 tokens."""


def toxic_prompts(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The texts to be continued."""
    for row in rows:
        if (row["prompt"]["toxicity"] or 0) > TOXICITY:
            text = row["prompt"]["text"] + row["continuation"]["text"]
            yield " ".join(text.split()[:WORDS])


def main(output: Path) -> None:
    """Load the data set from the hub and write its prompts."""
    from datasets import load_dataset

    prompts = list(toxic_prompts(load_dataset("allenai/real-toxicity-prompts", split="train")))
    with output.open("w", encoding="utf-8") as file:
        for prompt in prompts[: len(prompts) * 4 // 5]:
            file.write(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

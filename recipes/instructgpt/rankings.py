"""Write berkeley-nest/Nectar as rankings for `rlhf reward`.

    python rankings.py OUTPUT.jsonl

Its prompts are dialogues with the turn marks `Human:` and `Assistant:`, its answers have ranks
from 1 (best) to 7.
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROLES = {"Human": "user", "Assistant": "assistant"}


def messages(dialogue: str) -> list[dict[str, str]]:
    """The turns of a dialogue; an empty last one, which is to be written, is left out."""
    _, *parts = re.split(r"(?:^|\n\n)(Human|Assistant):", dialogue)
    turns = zip(parts[::2], parts[1::2], strict=True)
    said = [{"role": ROLES[name], "content": text.strip()} for name, text in turns]
    return said[:-1] if said and not said[-1]["content"] else said


def ranking(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of Nectar as a ranking; the best answer has the highest score."""
    return {
        "prompt": messages(row["prompt"]),
        "responses": [answer["answer"] for answer in row["answers"]],
        "scores": [-answer["rank"] for answer in row["answers"]],
    }


def main(output: Path) -> None:
    """Load the data set from the hub and write all of it."""
    from datasets import load_dataset

    with output.open("w", encoding="utf-8") as file:
        for row in load_dataset("berkeley-nest/Nectar", split="train"):
            file.write(json.dumps(ranking(row), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

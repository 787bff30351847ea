"""Write the sums; the same bytes at every run.

    python recipes/arithmetic_grpo/make_data.py [FOLDER]

FOLDER (default: `data` beside this file) receives rows for SFT, prompts for GRPO, and prompts that
neither of them has, in these words.
"""

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

SEED = 20240205
LARGEST = 12
"""Of the two numbers of a sum."""

FORMS = (
    "{}+{}=",
    "{} + {} = ",
    "{} plus {} is ",
    "add {} and {}: ",
    "{} and {} make ",
    "sum {} {}: ",
)

ROWS = {"test": 200, "sft": 400, "grpo": 400}
"""Prompts of each file; none is in two of them."""


def write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """JSON lines, with Unix line ends on every system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode())


def main(folder: Path) -> None:
    """Write everything below `folder`."""
    numbers = range(LARGEST + 1)
    rows = [
        {"prompt": form.format(a, b), "completion": str(a + b)}
        for form in FORMS
        for a in numbers
        for b in numbers
    ]
    random.Random(SEED).shuffle(rows)
    for name, count in ROWS.items():
        chosen, rows = rows[:count], rows[count:]
        kept = chosen if name != "grpo" else [{"prompt": row["prompt"]} for row in chosen]
        write(folder / f"{name}.jsonl", kept)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data")

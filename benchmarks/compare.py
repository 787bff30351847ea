"""Every stage beside the peer, one after the other, and the table of docs/performance.md.

    bash benchmarks/install_peers.sh
    RLHF_DATA=... python -m benchmarks.compare [--stages sft dpo] [--rounds 2]
    python -m benchmarks.compare --stages    # the table alone, of the results that are there

The best precision of each side counts. Tokens are those of the rows, without padding; the share is
that of the products' speed which the machine was measured to reach while the run began. PPO's
counts the products of the updates against the time of the whole step, rollout included.

What the table does not tell: `benchmarks.primitive` (the output layer beside TRL's and Liger's),
`attention`, `levers` (what each of ours gives), `growth` (with tokens, rows, vocabulary, samples),
`rollout`, `loop`, `startup`, `adapters`, `gpu`; `benchmarks.sft --shape 135m` a larger model.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.beside import best, median
from benchmarks.common import RESULTS, spread

STAGES = {
    "sft": ("sft", ["benchmarks.sft"], "rows"),
    "reward": ("reward", ["benchmarks.judged", "reward"], "pairs"),
    "dpo": ("dpo_stored", ["benchmarks.judged", "dpo", "--reference", "stored"], "pairs"),
    "bco": ("bco_stored", ["benchmarks.judged", "bco", "--reference", "stored"], "rows"),
    "ppo": ("ppo_trunk", ["benchmarks.ppo", "--steps", "3"], "responses"),
}
"""Name of the result, the benchmark that makes it, and what it counts."""

PAGE = Path("docs/performance.md")
BEGIN, END = "<!-- python -m benchmarks.compare -->\n", "<!-- end -->\n"

HEAD = """\
| stage | per second | tokens per second | share of peak | TRL per second | speedup | memory ratio |
|---|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=list(STAGES))
    parser.add_argument("--rounds", default="2")
    chosen = parser.parse_args()
    for stage in chosen.stages:
        command = [sys.executable, "-m", *STAGES[stage][1], "--rounds", chosen.rounds]
        subprocess.run(command, check=True)
    table = HEAD + "".join(rows())
    print(table)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}{table}{END}{after}", encoding="utf-8")


def rows() -> Iterator[str]:
    """A line for each stage that has a result."""
    for stage, (name, _, unit) in STAGES.items():
        file = RESULTS / f"{name}.json"
        if file.is_file():
            yield row(stage, unit, json.loads(file.read_text(encoding="utf-8")))


def row(stage: str, unit: str, result: dict[str, Any]) -> str:
    """The best of each side, in a line."""
    ours, peer = (result["runs"][best(result["runs"], name)] for name in ("rlhf", "TRL"))
    speed, other = (median(runs, "rows_per_second") for runs in (ours, peer))
    memory = median(ours, "peak_memory_mb") / median(peer, "peak_memory_mb")
    share = f"{median(ours, 'peak_fraction'):.0%}" if "peak_fraction" in ours[0] else ""
    cells = [
        stage,
        f"{speed:.1f} {unit}",
        f"{speed * result['tokens_per_row']:,.0f}",
        share,
        f"{other:.1f} {unit}",
        spread(result["ratios"]),
        f"{memory:.2f}",
    ]
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    main()

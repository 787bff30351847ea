"""Seconds from the command line to the first step of `rlhf sft`, data prepared before or not.

    python -m benchmarks.startup [--rounds 3] [words of the command ...]

`config=tiny/sft` where no words are given. The clock starts before Python does and stops when the
first step's line is in `metrics.jsonl`; held-out rows were evaluated by then. Cold: a cache of its
own that is empty. Warm: the same cache again.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.common import SCRATCH, save, spread
from rlhf_cli.runs.run_files import read_json_lines

AIM = 6.0
"""Seconds."""

LOOK = 0.005
"""Seconds between two looks at the file."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("words", nargs="*", default=["config=tiny/sft"])
    given = parser.parse_args()
    SCRATCH.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(given.rounds):
        with TemporaryDirectory(dir=SCRATCH) as cache:
            for state, found in seconds.items():
                found.append(until_first_step(given.words, cache))
                print(state, f"{found[-1]:.2f} s", flush=True)
    save("startup", {"words": given.words, "seconds": seconds})
    print("\n| cache of prepared rows | s to the first step | aim |\n|---|---|---|")
    for state, found in seconds.items():
        kept = "kept" if statistics.median(found) <= AIM else "missed"
        print(f"| {state} | {spread(found)} | {AIM:.0f}, {kept} |")


def until_first_step(words: list[str], cache: str) -> float:
    """Start a run, and stop it when its first step is done."""
    with TemporaryDirectory(dir=SCRATCH) as out:
        command = [sys.executable, "-m", "rlhf_cli", "sft", f"output_dir={out}/run"]
        log = SCRATCH / "startup.log"
        with log.open("w", encoding="utf-8") as errors:
            began = time.monotonic()
            process = subprocess.Popen(
                [*command, *words], stderr=errors, env={**os.environ, "RLHF_CACHE": cache}
            )
            while not stepped(Path(out) / "run" / "metrics.jsonl"):
                if process.poll() is not None:
                    sys.exit(f"{' '.join(command)} failed; see {log}")
                time.sleep(LOOK)
            seconds = time.monotonic() - began
            process.terminate()  # it writes a checkpoint and ends
            process.wait()
        return seconds


def stepped(file: Path) -> bool:
    """Whether the first step is in the metrics."""
    if not file.is_file():
        return False
    return any("step_seconds" in line for line in read_json_lines(file))


if __name__ == "__main__":
    main()

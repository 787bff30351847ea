"""One run of `rlhf STAGE`; prints examples a second as JSON."""

import json
import shutil
import statistics
import sys

from benchmarks.common import SCRATCH
from rlhf_cli import cli
from rlhf_cli.train.metrics import read_metrics

PEERS = "rows_a_pass="
"""What the other side alone reads."""

COMMON = ("batch_size=16", "max_length=512", "lr=1e-4")
OF_STAGE = {"ppo": ("template=never", "lr=3e-6")}


def main(stage: str, model: str, rows: str, *rest: str) -> None:
    """The rest: settings of the stage, then the precision."""
    *own, precision = rest
    out = SCRATCH / f"run_{stage}"
    shutil.rmtree(out, ignore_errors=True)
    words = [*COMMON, *OF_STAGE.get(stage, ()), *own]
    settings = dict(word.split("=", 1) for word in words if not word.startswith(PEERS))
    argv = [stage, f"model={model}", f"data={rows}", f"output_dir={out}"]
    argv += [f"train.precision={precision}", *map("=".join, settings.items())]
    if cli.main(argv):
        sys.exit(1)
    steps = [line for line in read_metrics(out / "metrics.jsonl") if "step_seconds" in line][1:]
    speed = int(settings["batch_size"]) / statistics.mean(line["step_seconds"] for line in steps)
    share = statistics.mean(line["peak_fraction"] for line in steps)
    found = {"rows_per_second": speed, "peak_fraction": share, "last_loss": steps[-1]["loss"]}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])

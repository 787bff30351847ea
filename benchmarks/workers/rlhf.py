"""One run of `rlhf STAGE`; prints examples a second as JSON."""

import json
import shutil
import statistics
import sys

from benchmarks.common import SCRATCH
from rlhf_cli import cli
from rlhf_cli.train.metrics import read_metrics


def main(stage: str, model: str, rows: str, *rest: str) -> None:
    """The rest: settings of the stage, then the precision."""
    *own, precision = rest
    out = SCRATCH / f"run_{stage}"
    shutil.rmtree(out, ignore_errors=True)
    settings = [f"train.precision={precision}", "batch_size=16", "max_length=512", "lr=1e-4"]
    argv = [stage, f"model={model}", f"data={rows}", f"output_dir={out}", *settings, *own]
    if cli.main(argv):
        sys.exit(1)
    steps = [line for line in read_metrics(out / "metrics.jsonl") if "step_seconds" in line][1:]
    speed = 16 / statistics.mean(line["step_seconds"] for line in steps)
    print(json.dumps({"rows_per_second": speed, "last_loss": steps[-1]["loss"]}))


if __name__ == "__main__":
    main(*sys.argv[1:])

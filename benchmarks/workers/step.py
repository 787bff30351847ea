"""A step in a process of its own, several times; prints its seconds as JSON."""

import json
import os
import sys


def main(given: str, runs: str) -> None:
    settings = json.loads(given)
    os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = str(settings.get("kernel_cache", 128))
    from benchmarks.steps import Settings, open_step  # oneDNN reads its setting once
    from rlhf_cli.context import keep_freed_memory

    chosen = Settings(**settings)
    if chosen.keep_freed:
        keep_freed_memory()
    step = open_step(chosen)
    seconds = [step.run() for _ in range(int(runs) + 1)]
    print(json.dumps({"seconds": seconds[1:]}))  # the first compiles kernels


if __name__ == "__main__":
    main(*sys.argv[1:])

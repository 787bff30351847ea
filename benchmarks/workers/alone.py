"""Run a module as `python -m` does; prints the most memory that the process held as JSON.

The kernel's own figure for a child is no less than what its parent held when it was started.
"""

import json
import runpy
import sys

import torch

from benchmarks.memory import peak_bytes


def main() -> None:
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    print(json.dumps({"peak_memory_mb": peak_bytes(torch.device("cpu")) / 2**20}))


if __name__ == "__main__":
    main()

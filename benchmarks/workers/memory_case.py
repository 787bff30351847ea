"""One run of a stage in a process of its own: the peaks that the memory model estimates; JSON.

    python -m benchmarks.workers.memory_case '{"stage": ..., "words": [...], "rows": {...}}'

What the process holds after its imports and a first product is taken off on a CPU, where the peak
is that of the whole process.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from rlhf_cli import cli
from rlhf_cli.config.args import parse
from rlhf_cli.config.command import load_function
from rlhf_cli.context import configure_cpu, current_device
from rlhf_cli.memory.device import find_device
from rlhf_cli.memory.estimate import Estimate, Rows, estimate_memory
from rlhf_cli.memory.phase import read_status
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resolve import resolve

EXTRAS = {"adapter=": "rlhf_cli.models.attach_adapters", "quant=": "bitsandbytes"}
"""Start of an argument -> module that a run with it imports."""


def main(given: str) -> None:
    case = json.loads(given)
    command, out = COMMANDS[case["stage"]], Path(case["out"])
    words = [*case["words"], f"output_dir={out}"]
    cfg = resolve(command, parse(command, words)).config
    device = current_device()
    load_function(command.runner)
    for start, module in EXTRAS.items():
        if any(word.startswith(start) for word in words):
            importlib.import_module(module)
    if device.type == "cpu":
        configure_cpu()
    square = torch.ones(64, 64, dtype=torch.bfloat16, device=device)
    square @ square
    idle = read_status("VmRSS") if device.type == "cpu" else 0
    code = cli.main([command.name, *words])
    if code:
        sys.exit(code)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    estimate = estimate_memory(command.name, cfg, Rows(**case["rows"]), find_device())
    print(json.dumps(compare(estimate, manifest["peak_memory_bytes_by_phase"], idle)))


def compare(estimate: Estimate, measured: dict[str, int], idle: int) -> dict[str, Any]:
    """Estimate without the libraries, and measured peak beside what they hold."""
    parts = {
        phase: {name: size for name, size in of.items() if name != "framework"}
        for phase, of in estimate.phases.items()
    }
    totals = {phase: sum(of.values()) for phase, of in parts.items()}
    return {
        "estimate": max(totals.values()),
        "measured": max(measured.values()) - idle,
        "idle": idle,
        "phases": {
            phase: {"estimate": totals[phase], "measured": measured.get(phase, idle) - idle}
            for phase in totals
        },
        "parts": parts,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])

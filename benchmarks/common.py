"""What the benchmarks share: a model, real rows, child processes, results."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

SCRATCH = Path("build/benchmarks")
RESULTS = Path("benchmarks/results")


def data_folder() -> Path:
    """The folder of real data that docs/data.md describes."""
    if "RLHF_DATA" not in os.environ:
        sys.exit("set RLHF_DATA to the folder that docs/data.md describes")
    return Path(os.environ["RLHF_DATA"])


def texts(row: dict[str, Any]) -> tuple[str, str]:
    """Prompt and chosen response of a preference row, as plain text."""
    turns = [f"{turn['role']}: {turn['content']}\n" for turn in row["prompt"]]
    return "".join(turns) + "assistant:", " " + row["chosen"]


def make_model(folder: Path, corpus: Iterable[str]) -> Any:
    """An 8.3 M Llama (d 288, 6 layers, V 8192) with random weights; returns its tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from rlhf_cli.models.source import DEFAULT_ARCHITECTURE
    from rlhf_cli.models.tokenizer import train_tokenizer

    if not folder.exists():
        tokenizer = train_tokenizer(corpus, 8192)
        shape = {k: v for k, v in DEFAULT_ARCHITECTURE.items() if k != "model_type"}
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                **shape,
                vocab_size=len(tokenizer),
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=None,
            )
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def child(module: str, *argv: str, path: str = "") -> dict[str, Any]:
    """Run `python -m module argv` alone; its last line of output is JSON, to which memory is added.

    Args:
        module: with a `main`.
        argv: its arguments.
        path: put in front of PYTHONPATH.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "RLHF_CACHE": str(SCRATCH / "cache")}
    if path:
        environment["PYTHONPATH"] = path
    command = [sys.executable, "-W", "ignore", "-m", module, *argv]
    with (SCRATCH / "child.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed; see {SCRATCH / 'child.log'}")
    return {**json.loads(output.splitlines()[-1]), "peak_memory_mb": usage.ru_maxrss / 1024}


def now(device: torch.device) -> float:
    """Seconds, when all that the device was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def save(name: str, result: dict[str, Any]) -> None:
    """Write a result with what it was measured on."""
    machine = {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "features": [f for f, on in torch.cpu.get_capabilities().items() if on and "bf16" in f],
        "torch": torch.__version__,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine, **result}, indent=2) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")

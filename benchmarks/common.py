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

SHAPES: dict[str, dict[str, int]] = {
    "8m": {},
    "135m": {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49_152,
    },
}
"""What differs from the default architecture; the larger one has that of SmolLM2-135M, and more
vocabulary than the tokenizer uses."""


def data_folder() -> Path:
    """The folder of real data that docs/data.md describes."""
    if "RLHF_DATA" not in os.environ:
        sys.exit("set RLHF_DATA to the folder that docs/data.md describes")
    return Path(os.environ["RLHF_DATA"])


def texts(row: dict[str, Any]) -> tuple[str, str]:
    """Prompt and chosen response of a preference row, as plain text."""
    turns = [f"{turn['role']}: {turn['content']}\n" for turn in row["prompt"]]
    return "".join(turns) + "assistant:", " " + row["chosen"]


def model_folder(shape: str) -> Path:
    """Where `make_model` puts a shape of `SHAPES`."""
    return SCRATCH / f"llama_{shape}"


def make_model(folder: Path, corpus: Iterable[str], shape: str = "8m") -> Any:
    """A Llama of a shape of `SHAPES` with random weights; returns its tokenizer of 8,192 tokens."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from rlhf_cli.models.config import DEFAULT_ARCHITECTURE
    from rlhf_cli.models.tokenizer import train_tokenizer

    if not folder.exists():
        tokenizer = train_tokenizer(corpus, 8192)
        config = {"vocab_size": len(tokenizer), **DEFAULT_ARCHITECTURE, **SHAPES[shape]}
        del config["model_type"]
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                **config,
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
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.workers.alone", module, *argv]
    log = SCRATCH / "child.log"
    with log.open("w", encoding="utf-8") as errors:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed; see {log}")
    found, memory = done.stdout.splitlines()[-2:]
    return {**json.loads(found), **json.loads(memory)}


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

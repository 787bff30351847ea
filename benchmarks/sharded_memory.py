"""Memory of each process of a sharded run, measured, beside 1/n + constant and the memory model.

    python -m benchmarks.sharded_memory [MODEL] [--shard full grad_op] [--processes 1 2 4]
                                        [--precision fp32]

Trains two steps of sft on CPU processes, each with one thread, and reads the resident memory of the
processes from the run's manifest: the peak of the phase `update` of rank 0, and the peak of every
rank over the whole run. MODEL is a folder with weights; without it, random weights of the shape of
SmolLM2-135M are written. 1/n + constant is a line through the first and the last measurement.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import SCRATCH, save
from benchmarks.memory_model import ROW, data_file, rows_of
from benchmarks.memory_model import Case as DataCase
from rlhf_cli.config.args import parse
from rlhf_cli.console import muted
from rlhf_cli.memory.device import find_device
from rlhf_cli.memory.estimate import Rows, estimate_memory
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resolve import resolve

OUT = SCRATCH / "sharded_memory"

SMOLLM2_135M = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}


@dataclass(frozen=True)
class Measured:
    """Memory of one run in bytes.

    Attributes:
        update: peak of the phase `update` of rank 0.
        ranks: peak of each rank over the run.
        estimate: of the phase `update`, by the memory model.
    """

    update: int
    ranks: list[int]
    estimate: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="", help="folder of a model with weights")
    parser.add_argument("--shard", nargs="+", default=["full", "grad_op"])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--precision", default="fp32")
    given = parser.parse_args()
    model = given.model or str(random_model())
    results: dict[str, Any] = {}
    for shard in given.shard:
        found = {}
        for n in given.processes:
            found[n] = measure(model, shard, n, given.precision)
            print(f"{shard}, {n} processes: {found[n]}", file=sys.stderr, flush=True)
        print("\n".join(lines(shard, found)), flush=True)
        results[shard] = {n: vars(one) for n, one in found.items()}
    save("sharded_memory", {"precision": given.precision, "runs": results})


def lines(shard: str, found: dict[int, Measured]) -> list[str]:
    """The table of one kind of sharding, in MB."""
    constant, share = fit({n: one.update for n, one in found.items()})
    head = f"{shard:8}  processes  update MB  1/n + constant  estimate  error  peak of each rank MB"
    rows = [
        f"{'':8}  {n:9}  {one.update / 1e6:9,.0f}  {(constant + share / n) / 1e6:14,.0f}  "
        f"{one.estimate / 1e6:8,.0f}  {one.estimate / one.update - 1:5.0%}  "
        + " ".join(f"{size / 1e6:,.0f}" for size in one.ranks)
        for n, one in found.items()
    ]
    return [head, *rows, f"{'':8}  {share / 1e6:,.0f} MB / n + {constant / 1e6:,.0f} MB"]


def fit(sizes: dict[int, int]) -> tuple[float, float]:
    """Constant and numerator of 1/n + constant, through the fewest and the most processes."""
    few, many = min(sizes), max(sizes)
    if few == many:
        return float(sizes[few]), 0.0
    share = (sizes[few] - sizes[many]) / (1 / few - 1 / many)
    return sizes[few] - share / few, share


def measure(model: str, shard: str, processes: int, precision: str) -> Measured:
    """Run two steps in so many processes, and estimate them."""
    out = OUT / "run"
    shutil.rmtree(out, ignore_errors=True)
    case = DataCase("sft", "deep")
    words = [
        f"model={model}",
        f"data={data_file(case)}",
        "data.eval=none",
        f"data.max_length={ROW}",
        "train.batch_size=8",
        "train.micro_batch_tokens=256",
        "train.max_steps=2",
        f"train.precision={precision}",
        "log.preview=false",
        "log.sample_prompts=0",
        f"launch.shard={shard}",
    ]
    run([*words, f"output_dir={out}"], processes)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    return Measured(
        update=manifest["peak_memory_bytes_by_phase"]["update"],
        ranks=manifest["peak_memory_bytes_by_rank"],
        estimate=estimate(words, processes, Rows(**{n: int(v) for n, v in rows_of(case).items()})),
    )


def run(words: Sequence[str], processes: int) -> None:
    """Run sft by torchrun, which starts more processes than there are cores."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["-m", "rlhf_cli", "sft", *words]
    log = OUT / "child.log"
    with log.open("w", encoding="utf-8") as errors:
        variables = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, stdout=errors, stderr=errors, env=variables)
    if done.returncode:
        sys.exit(f"{processes} processes failed; see {log}")


def estimate(words: Sequence[str], processes: int, rows: Rows) -> int:
    """Bytes that the memory model says of the phase `update`."""
    with muted():
        cfg = resolve(COMMANDS["sft"], parse(COMMANDS["sft"], list(words))).config
    return estimate_memory("sft", cfg, rows, find_device(), processes=processes).total("update")


def random_model() -> Path:
    """A folder with random weights of the shape of SmolLM2-135M, and the shipped tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from rlhf_cli.resources import shipped_model

    folder = OUT / "model"
    if not folder.exists():
        tokenizer = AutoTokenizer.from_pretrained(shipped_model())
        ids = {name: getattr(tokenizer, name) for name in ("eos_token_id", "pad_token_id")}
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**SMOLLM2_135M, **ids)).bfloat16().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()

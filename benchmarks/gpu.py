"""What the machine's own limit leaves to be had: one device, random weights, every stage's step.

    python -m benchmarks.gpu [--size smallest|0.5b|1.5b]

On a GPU the sizes are 0.5b and then 1.5b (shapes of Qwen2.5), on a CPU the smallest, which shows
that the file runs. Shares are of the products' speed that a large product reaches here and now.
"""

import argparse
import contextlib
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import SCRATCH, now, save
from benchmarks.heads import once, ours
from benchmarks.memory import forget_peak, peak_bytes
from rlhf_cli import cli
from rlhf_cli.kernels.registry import choose
from rlhf_cli.train.metrics import read_metrics
from rlhf_cli.train.throughput import measure_peak

OUT = SCRATCH / "gpu"

STEPS = 6
"""Of each stage; the first two are not counted."""

GIB = 2**30


@dataclass(frozen=True)
class Size:
    """A model's shape, and how much of it a step takes.

    Attributes:
        shape: of a transformers Qwen2.
        length: tokens of a row.
        batch: rows of a step, or pairs.
        response: tokens that PPO writes.
        head: tokens, width and vocabulary of the log-prob primitive alone.
    """

    shape: dict[str, int]
    length: int
    batch: int
    response: int
    head: tuple[int, int, int]


def _shape(width: int, layers: int, heads: int, inner: int, vocab: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "intermediate_size": inner,
        "vocab_size": vocab,
        "max_position_embeddings": 4096,
    }


SIZES = {
    "smallest": Size(_shape(64, 2, 4, 128, 1280), 64, 4, 8, (256, 64, 1280)),
    "0.5b": Size(_shape(896, 24, 14, 4864, 151_936), 1024, 32, 256, (8192, 4096, 151_936)),
    "1.5b": Size(_shape(1536, 28, 12, 8960, 151_936), 1024, 16, 256, (8192, 4096, 151_936)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, action="append")
    cuda = torch.cuda.is_available()
    names = parser.parse_args().size or (["0.5b", "1.5b"] if cuda else ["smallest"])
    device = torch.device("cuda" if cuda else "cpu")
    peak = measure_peak(device, torch.bfloat16)
    copied = copies(device)
    print(f"{device}: {peak / 1e12:.2f} TFLOP/s, copies {copied / 1e9:.0f} GB/s", flush=True)
    results: dict[str, Any] = {"device": str(device), "peak": peak, "copies": copied}
    for name in names:
        results[name] = measure(SIZES[name], device)
        save("gpu" if cuda else "gpu_on_cpu", results)  # after each, in case time runs out


def measure(size: Size, device: torch.device) -> dict[str, Any]:
    """All figures of a size."""
    shutil.rmtree(OUT, ignore_errors=True)
    model = make_model(size)
    found: dict[str, Any] = {"primitive": primitive(size.head, device)}
    print(found, flush=True)
    common = [f"model={model}", f"train.batch_size={size.batch}", f"data.max_length={size.length}"]
    for stage, rows in (("sft", sft_rows(size)), ("dpo", pairs(size))):
        words = [*common, f"data={write(stage, rows)}"]
        words += ["model.reference=copy"] if stage == "dpo" else []
        found[stage] = step(stage, words)
        print(stage, found[stage], flush=True)
    prompts = write("ppo", [{"prompt": row["prompt"]} for row in sft_rows(size)])
    words = [*common, f"data={prompts}", f"sampling.max_new_tokens={size.response}"]
    words += ["template=never", "reward.length_penalty=1", "ppo_epochs=1"]
    found["ppo"] = step("ppo", words)
    drawn = size.batch * size.response
    found["ppo"]["decoded_tokens_per_second"] = drawn / found["ppo"]["time/rollout"]
    print("ppo", found["ppo"], flush=True)
    return found


def make_model(size: Size) -> Path:
    """A folder with random bf16 weights and the shipped tokenizer, whose ids are the first ones."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

    from rlhf_cli.resources import shipped_model

    folder = OUT / "model"
    tokenizer = AutoTokenizer.from_pretrained(shipped_model("tiny"))
    config = Qwen2Config(**size.shape, tie_word_embeddings=True)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sft_rows(size: Size) -> list[dict[str, str]]:
    """As many as the steps take; a quarter of each is prompt."""
    words = size.length * 2 // 3  # a word of these is a token and a half, about
    rows = range(size.batch * STEPS)
    return [
        {"prompt": text(n, words // 4), "completion": " " + text(n + 1, words * 3 // 4)}
        for n in rows
    ]


def pairs(size: Size) -> list[dict[str, str]]:
    """The same with two responses each."""
    return [
        {"prompt": r["prompt"], "chosen": r["completion"], "rejected": r["completion"][::-1]}
        for r in sft_rows(size)
    ]


def text(seed: int, words: int) -> str:
    """Some words, others for each seed."""
    known = ("tea", "rain", "gold", "wool", "chess", "snow", "about", "people", "time", "world")
    return " ".join(known[(seed * 7 + k * (k + seed)) % len(known)] for k in range(words))


def write(name: str, rows: list[dict[str, str]]) -> Path:
    """A file of rows."""
    file = OUT / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def step(stage: str, words: list[str]) -> dict[str, float]:
    """Means over the counted steps of a run."""
    out = OUT / f"run_{stage}"
    log = io.StringIO()
    argv = [stage, f"output_dir={out}", f"train.max_steps={STEPS}", "data.eval=none", *words]
    with contextlib.redirect_stderr(log):
        code = cli.main(argv)
    if code:
        raise SystemExit(log.getvalue())
    lines = [line for line in read_metrics(out / "metrics.jsonl") if "step_seconds" in line][2:]
    names = ("step_seconds", "tokens_per_second", "peak_fraction", "time/rollout", "time/update")
    kept = [name for name in names if name in lines[0]]
    found = {name: sum(line[name] for line in lines) / len(lines) for name in kept}
    shutil.rmtree(out)  # weights of gigabytes
    return found | {"peak_memory_gib": max(line["memory_bytes"] for line in lines) / GIB}


def primitive(shape: tuple[int, int, int], device: torch.device) -> dict[str, Any]:
    """Milliseconds and peak memory, operands included, of forward and backward."""
    implementation, _ = choose("auto", device)
    forget_peak(device)
    times = [once(ours(implementation), shape, torch.bfloat16, device) for _ in range(4)]
    return {
        "name": implementation.name,
        "milliseconds": 1e3 * min(times[1:]),
        "peak_memory_gib": peak_bytes(device) / GIB,
    }


def copies(device: torch.device) -> float:
    """Bytes a second that are read and written by a copy."""
    block = torch.ones(1 << (30 if device.type == "cuda" else 26), dtype=torch.uint8, device=device)
    other = torch.empty_like(block)
    best = float("inf")
    for _ in range(5):
        began = now(device)
        other.copy_(block)
        best = min(best, now(device) - began)
    return 2 * block.numel() / best


if __name__ == "__main__":
    main()

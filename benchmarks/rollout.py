"""Continuous batching compared with transformers' generate: useful tokens per second, in turns.

python -m benchmarks.rollout [--rounds 2] [--vocabulary 8192 32000] [--batch 1 16 64]
"""

import argparse
import random
import time
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common import save, spread
from rlhf_cli.context import configure_cpu
from rlhf_cli.models.config import DEFAULT_ARCHITECTURE
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.engine import GenerationJob, generate, generate_with_transformers
from rlhf_cli.rollout.response import Response
from rlhf_cli.rollout.stopping import StopCriteria

END_SHARE = 50
"""One token in this many ends a response, so that its length is about exponential."""

WAVES = 2
"""Prompts, in batches."""

SAMPLING = SamplingConfig(max_new_tokens=128)


def make_model(vocabulary: int, dtype: torch.dtype) -> Any:
    """A Llama with d 288, 6 layers and random weights: 8.3 M parameters with 8,192 tokens."""
    shape = {k: v for k, v in DEFAULT_ARCHITECTURE.items() if k != "model_type"}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=vocabulary)).eval().to(dtype)
    model.generation_config.eos_token_id = list(range(vocabulary // END_SHARE))
    return model


def make_prompts(count: int, vocabulary: int) -> list[list[int]]:
    """8 to 128 tokens, most of them short."""
    chance = random.Random(0)
    lengths = [min(128, 8 + int(chance.expovariate(1 / 32))) for _ in range(count)]
    return [[chance.randrange(vocabulary) for _ in range(length)] for length in lengths]


def ours(model: Any, tokenizer: Any, prompts: list[list[int]], batch: int) -> list[list[int]]:
    responses = generate(model, tokenizer, prompts, SAMPLING, batch_size=batch)
    return [response.token_ids for response in responses]


def plain(model: Any, tokenizer: Any, prompts: list[list[int]], batch: int) -> list[list[int]]:
    """Batches of prompts of like length, which is to generate's advantage."""
    rows = [Response(n, n, p) for n, p in enumerate(sorted(prompts, key=len))]
    seeds = [(0, row.index, 0) for row in rows]
    stop = StopCriteria(model, tokenizer, SAMPLING)
    generate_with_transformers(GenerationJob(model, tokenizer, rows, seeds, SAMPLING, stop, batch))
    return [row.token_ids for row in rows]


def measure(vocabulary: int, dtype: torch.dtype, batch: int, rounds: int) -> dict[str, Any]:
    model = make_model(vocabulary, dtype)
    prompts = make_prompts(max(6, WAVES * batch), vocabulary)
    tokenizer = SimpleNamespace(eos_token_id=None)
    ways = {"slots": ours, "generate": plain}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(model, tokenizer, prompts[:batch], batch)  # kernels are compiled
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.monotonic()
            tokens = way(model, tokenizer, prompts, batch)
            speeds[name].append(sum(map(len, tokens)) / (time.monotonic() - began))
    ratios = [s / g for s, g in zip(speeds["slots"], speeds["generate"], strict=True)]
    kind = str(dtype).removeprefix("torch.")
    print(
        f"V {vocabulary:6} {kind:9} batch {batch:3}: slots {spread(speeds['slots'])}, "
        f"generate {spread(speeds['generate'])} tokens/s, ratio {spread(ratios)}",
        flush=True,
    )
    return {"vocabulary": vocabulary, "dtype": kind, "batch": batch, **speeds, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[8192, 32000])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    arguments = parser.parse_args()
    configure_cpu()
    results = [
        measure(vocabulary, dtype, batch, arguments.rounds)
        for vocabulary in arguments.vocabulary
        for dtype in (torch.float32, torch.bfloat16)
        for batch in arguments.batch
    ]
    save("rollout", {"results": results})


if __name__ == "__main__":
    main()

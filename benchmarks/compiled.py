"""Passes forward and backward with compiled layers beside plain ones, over the same real rows.

RLHF_DATA=... python -m benchmarks.compiled [--rounds 3] [--steps 4]

In one process, a step of each in turns, after a step of each that is not counted.
"""

import argparse
import contextlib
import io
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.common import save, spread
from benchmarks.sft import prepare
from rlhf_cli.context import PRECISIONS, RunContext
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.dataset import load_examples
from rlhf_cli.data.loader import ExampleLoader
from rlhf_cli.data.records.types import PromptCompletionRecord
from rlhf_cli.losses.likelihood import nll_loss
from rlhf_cli.models.config import LoadConfig, ModelConfig
from rlhf_cli.models.load import LoadInputs, load_policy
from rlhf_cli.models.parameters import cast_params
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.models.torch_compile import compile_layers, uncompiled
from rlhf_cli.train.config import TrainConfig


def passes(policy, step) -> float:
    began = time.monotonic()
    for rows in step:
        nll_loss(policy(rows).logp).sum().backward()
    policy.zero_grad()
    return time.monotonic() - began


def compare(policy, steps, rounds: int) -> dict[str, object]:
    began = time.monotonic()
    compile_layers(policy)
    seconds = time.monotonic() - began
    times: dict[str, list[float]] = {"plain": [], "compiled": []}
    for step in [steps[0], *steps * rounds]:
        with uncompiled(policy):
            times["plain"].append(passes(policy, step))
        times["compiled"].append(passes(policy, step))
    times = {name: values[1:] for name, values in times.items()}
    ratios = [p / c for p, c in zip(times["plain"], times["compiled"], strict=True)]
    return {"compile_seconds": seconds, "times": times, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    model, rows, _ = prepare(options.steps)
    data, load = DataConfig(path=rows), LoadConfig(model=ModelConfig(path=model))
    tokenizer = load_tokenizer(load.model)
    examples, _ = load_examples(data, "sft", tokenizer, (PromptCompletionRecord,))
    steps = list(ExampleLoader(examples, data, TrainConfig(batch_size=16), 0, 4096))
    found = {}
    for name, compute in PRECISIONS.items():
        with TemporaryDirectory() as out, contextlib.redirect_stderr(io.StringIO()):
            ctx = RunContext(torch.device("cpu"), compute, 0, Path(out))
            policy = load_policy(load, LoadInputs(tokenizer, ctx)).train()
            cast_params(policy.parameters(), compute)
            found[name] = compare(policy, steps, options.rounds)
        compiling = f"{found[name]['compile_seconds']:.0f} s to compile"
        print(f"{name}: plain / compiled {spread(found[name]['ratios'])}; {compiling}", flush=True)
    save("compiled", found)


if __name__ == "__main__":
    main()

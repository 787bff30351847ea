"""What the loop costs beside a bare one over the same model and batches, in turns.

RLHF_DATA=... python -m benchmarks.loop [--rounds 5] [--steps 12]
"""

import argparse
import contextlib
import io
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch

from benchmarks.common import save, spread
from benchmarks.sft import prepare
from rlhf_cli.context import RunContext, choose_compute
from rlhf_cli.data.config import DataConfig
from rlhf_cli.data.dataset import load_examples
from rlhf_cli.data.loader import ExampleLoader
from rlhf_cli.data.records.types import PromptCompletionRecord
from rlhf_cli.losses.likelihood import nll_loss
from rlhf_cli.losses.reduction import LossOutput, LossTerm
from rlhf_cli.models.config import LoadConfig, ModelConfig
from rlhf_cli.models.load import LoadInputs, load_policy
from rlhf_cli.models.tokenizer import load_tokenizer
from rlhf_cli.train.config import TrainConfig
from rlhf_cli.train.loop import TrainingLoop, fit
from rlhf_cli.train.optim import MasterAdamW
from rlhf_cli.train.task import TrainingTask

LR = 1e-4


def bare(policy, source, cfg, ctx) -> float:
    """Forward, backward, clip, AdamW: nothing else."""
    optimizer = MasterAdamW(policy, cfg, ctx.compute)
    began = time.monotonic()
    for step in source:
        count = sum(len(rows.scored) for rows in step)
        for rows in step:
            (nll_loss(policy(rows).logp).sum() / count).backward()
        gradients = list(optimizer.gradients().values())
        norm = torch.nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, (cfg.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        optimizer.step(LR)
    return time.monotonic() - began


def whole(policy, source, cfg, ctx) -> float:
    """`fit`, with its checks, metrics file and progress line."""

    def loss(rows):
        return LossOutput({"nll": LossTerm(nll_loss(policy(rows).logp).sum(), "tokens")})

    began = time.monotonic()
    with patch.object(TrainingLoop, "_save"):  # once a run, not part of a step
        task = TrainingTask(policy=policy, source=source, loss=loss, locate=str)
        fit(task, replace(cfg, lr=LR), ctx)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    model, rows, _ = prepare(options.steps)
    device = torch.device("cpu")
    compute, _ = choose_compute("auto", device)
    cfg = TrainConfig(batch_size=16)
    data, load = DataConfig(path=rows), LoadConfig(model=ModelConfig(path=model))
    tokenizer = load_tokenizer(load.model)
    examples, _ = load_examples(data, "sft", tokenizer, (PromptCompletionRecord,))
    times: dict[str, list[float]] = {"bare": [], "fit": []}
    for _ in range(options.rounds):
        for name, run in (("bare", bare), ("fit", whole)):
            with TemporaryDirectory() as out, contextlib.redirect_stderr(io.StringIO()):
                ctx = RunContext(device, compute, 0, Path(out))
                policy = load_policy(load, LoadInputs(tokenizer, ctx)).train()
                source = ExampleLoader(examples, data, cfg, 0, 4096)
                times[name].append(run(policy, source, cfg, ctx))
            print(name, f"{times[name][-1]:.2f} s", flush=True)
    ratios = [b / a for a, b in zip(times["bare"], times["fit"], strict=True)]
    print(f"fit / bare over {options.steps} steps: {spread(ratios)}")
    save("loop", {"times": times, "ratios": ratios})


if __name__ == "__main__":
    main()

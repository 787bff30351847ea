"""One point of the curves: a step of an 8.3 M Llama on rows of one size; prints JSON."""

import json
import sys
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.heads import once, ours
from benchmarks.memory import forget_peak, held_bytes, peak_bytes
from benchmarks.steps import PROMPT, TOKENS, Step, likelihood
from rlhf_cli.context import configure_cpu
from rlhf_cli.data.batches import TokenBatch
from rlhf_cli.kernels.registry import choose
from rlhf_cli.memory import activations
from rlhf_cli.memory.activations import Pass
from rlhf_cli.memory.shape import shape_of
from rlhf_cli.memory.weights import HeldModel
from rlhf_cli.models.batch_layout import build_flat_batch
from rlhf_cli.models.config import DEFAULT_ARCHITECTURE
from rlhf_cli.models.policy import Policy
from rlhf_cli.train.flops import FlopCount
from rlhf_cli.train.throughput import count_flops, measure_peak

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Point:
    """What a step is made of.

    Attributes:
        tokens: of a row, the prompt included where there is one.
        rows: of the step.
        vocab: of the model.
        samples: rows to each prompt of `PROMPT` tokens; 0 where rows have none.
    """

    tokens: int
    rows: int
    vocab: int
    samples: int

    @property
    def group(self) -> int:
        """Rows that stand together."""
        return max(1, self.samples)


def main(*given: str) -> None:
    *numbers, precision, runs = given
    point, dtype = Point(*map(int, numbers)), getattr(torch, precision)
    configure_cpu()
    implementation, _ = choose("auto", CPU)
    once(ours(implementation), (64, 64, 512), dtype, CPU)  # what is loaded at first is no step's
    rows = micro_batches(point)
    forget_peak(CPU)
    before = held_bytes(CPU)
    policy = Policy(make_model(point), implementation, flat=True)
    work = count_flops(policy)
    step = Step(policy, rows, likelihood(policy), dtype)
    peak = measure_peak(CPU, dtype)
    seconds = [step.run() for _ in range(int(runs) + 1)][1:]
    found = {
        "seconds": seconds,
        "seconds_of_products": sum(flop(work, part) for part in rows) / peak,
        "extra_mb": (peak_bytes(CPU) - before) / 2**20,
        "formula_mb": memory(policy, rows, point, dtype) / 2**20,
    }
    print(json.dumps(found))


def make_model(point: Point) -> LlamaForCausalLM:
    """The default architecture with random weights."""
    shape = {k: v for k, v in DEFAULT_ARCHITECTURE.items() if k != "model_type"}
    shape |= {"vocab_size": point.vocab, "max_position_embeddings": max(2048, point.tokens)}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**shape)).train()


def micro_batches(point: Point) -> list[TokenBatch]:
    """The rows of a step in parts of at most `TOKENS`, those to one prompt together."""
    a_pass = max(1, TOKENS // (point.tokens * point.group)) * point.group
    starts = range(0, point.rows, a_pass)
    return [make_rows(point, min(a_pass, point.rows - start)) for start in starts]


def make_rows(point: Point, count: int) -> TokenBatch:
    """Random tokens; scored are those behind the prompt, else all but the first of a row."""
    groups, prompt = count // point.group, PROMPT if point.samples else 0
    tokens = torch.randint(0, point.vocab, (groups, point.group, point.tokens))
    tokens[:, :, :prompt] = tokens[:, :1, :prompt]
    first = max(prompt - 1, 0)
    starts = torch.arange(count) * point.tokens
    return TokenBatch(
        tokens.flatten(),
        torch.full((count,), point.tokens),
        (starts[:, None] + torch.arange(first, point.tokens - 1)).flatten(),
        torch.arange(groups).repeat_interleave(point.group),
    )


def flop(work: FlopCount, rows: TokenBatch) -> float:
    """Of a micro-batch, what rows share counted once."""
    layout = build_flat_batch(rows, share=True).layout
    lengths = layout.lengths
    follows = layout.follows or (-1,) * len(lengths)
    before = [lengths[row] if row >= 0 else 0 for row in follows]
    pairs = sum(
        length * (length + 1) / 2 + length * more
        for length, more in zip(lengths, before, strict=True)
    )
    return work.token * sum(lengths) + work.pair * pairs + work.scored * len(rows.scored)


def memory(policy: Policy, rows: list[TokenBatch], point: Point, dtype: torch.dtype) -> float:
    """Bytes by the memory model: weights, gradients, moments, and the largest micro-batch."""
    config = {**policy.model.config.to_dict(), "model_type": "llama"}
    shape = shape_of("growth", config)
    count = sum(p.numel() for p in policy.parameters())
    held = HeldModel("policy", shape, trained=count)
    most = max(rows, key=lambda part: sum(build_flat_batch(part, share=True).layout.lengths))
    tokens = sum(build_flat_batch(most, share=True).layout.lengths)
    forward = Pass(dtype.itemsize, "cpu", tokens, point.tokens, len(most.scored))
    copies = dtype.itemsize if dtype != torch.float32 else 0
    head = activations.logits_bytes(shape, forward, backward=True)
    head += point.vocab * shape.width * dtype.itemsize
    return (16 + copies) * count + activations.saved_bytes(held, forward) + head


if __name__ == "__main__":
    main(*sys.argv[1:])

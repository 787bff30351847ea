"""Where the time of a step goes: products, attention, what lies between, and how near the limit.

    RLHF_DATA=... python -m benchmarks.shares [--stages sft dpo] [--rounds 3]

The 8.3 M Llama on real rows, by torch's profiler; the products' speed is theirs alone, without the
rest of the step, beside that of one large product.
"""

import argparse
from collections import Counter
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.beside import BATCH
from benchmarks.common import SCRATCH, save
from benchmarks.steps import Settings, Step, open_step
from rlhf_cli.context import settle_cpu
from rlhf_cli.train.throughput import count_flops, measure_peak

KINDS = {
    "products": ("aten::mm", "aten::addmm"),
    "attention": (
        "aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_softmax_backward_data",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "copies": ("aten::copy_", "aten::cat", "aten::fill_", "aten::index_select"),
    "AdamW": ("aten::_fused_adamw_",),
}  # fmt: skip
"""Operations by what they are for; all others are norms, activations, sums: element by element."""


def measure(stage: str, rounds: int) -> dict[str, Any]:
    """Seconds of a step by kind, and FLOP/s of its products."""
    step = open_step(Settings(stage, BATCH))
    step.run()  # compiles kernels
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(rounds):
            step.run()
    seconds = Counter[str]()
    kind_of = {name: kind for kind, names in KINDS.items() for name in names}
    for event in found.key_averages():
        kind = kind_of.get(event.key, "element by element")
        seconds[kind] += event.self_cpu_time_total / 1e6 / rounds
    return {
        "seconds": dict(seconds),
        "products_flops": products(step) / seconds["products"],
        "peak": measure_peak(torch.device("cpu"), torch.bfloat16),
    }


def products(step: Step) -> float:
    """FLOP of a step's products, what is computed once counted once; attention apart."""
    work = count_flops(step.policy)
    tokens = sum(step.policy.computed_tokens(rows) for rows in step.rows)
    scored = sum(len(rows.scored) for rows in step.rows)
    return work.token * tokens + work.scored * scored * 4 / 3  # logits are computed twice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", nargs="+", choices=("sft", "dpo"), default=["sft", "dpo"])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    SCRATCH.mkdir(parents=True, exist_ok=True)
    settle_cpu()
    results = {stage: measure(stage, given.rounds) for stage in given.stages}
    kinds = [*KINDS, "element by element"]
    print(f"| step | {' | '.join(kinds)} | the products' speed, of the limit |")
    print(f"|---{'|---' * len(kinds)}|---|")
    for stage, found in results.items():
        whole = sum(found["seconds"].values())
        cells = [f"{found['seconds'].get(kind, 0) / whole:.0%}" for kind in kinds]
        speed, peak = found["products_flops"], found["peak"]
        share = f"{speed / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s, {speed / peak:.0%}"
        print(f"| {stage}, {BATCH} examples | {' | '.join(cells)} | {share} |")
    save("shares", {"results": results})


if __name__ == "__main__":
    main()

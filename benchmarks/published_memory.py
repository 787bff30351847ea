"""Published peaks of memory beside the memory model, and what fits on 8 GPUs of 80 GB.

    python -m benchmarks.published_memory            # published runs
    python -m benchmarks.published_memory table      # 7 B to 70 B on 8 x 80 GB, by method

Published numbers are of other programs, which keep other things: their protocol stands beside each,
and so does what differs from this program. Nothing is fetched, loaded or run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.recipe_memory import config_of, write_shapes
from rlhf_cli.memory.device import Device
from rlhf_cli.memory.estimate import estimate_memory
from rlhf_cli.memory.parts import Estimate, Rows

GIB = 1 << 30

TORCHTITAN = "torchtitan benchmarks/llama3_h100_202412_torchtitan.md"
TORCHTUNE = "torchtune README.md of October 2024, Memory and training speed"
FSDP_QLORA = "fsdp_qlora benchmarks_03_2024.md"


@dataclass(frozen=True)
class Published:
    """A published peak of one GPU's memory.

    Attributes:
        source: repository and file.
        shape: of the model, in `recipe_memory.SHAPES`.
        gpus: that share it.
        gib: its number, GiB.
        protocol: as it says.
        rows: of a micro-batch.
        length: tokens of a row.
        words: keys of this program for the same.
        differs: what the published run keeps otherwise.
        bracket: other keys, where this program has no equal: the published run lies between.
    """

    source: str
    shape: str
    gpus: int
    gib: float
    protocol: str
    rows: int
    length: int
    words: tuple[str, ...]
    differs: str
    bracket: tuple[str, ...] = ()


_FULL = ("launch.shard=full",)
_RECOMPUTE = "train.gradient_checkpointing=true"
_WHOLE_LOGITS = "kernels=none"
_LORA_TUNE = "adapter.targets=[q_proj,v_proj,o_proj,gate_proj,up_proj,down_proj]"
_QLORA = ("adapter=lora", "quant=nf4", _RECOMPUTE, _WHOLE_LOGITS)

RUNS = (
    Published(
        TORCHTITAN + ", Table 1",
        "Llama-3-8B",
        8,
        82.4,
        "FSDP, bf16 with fp32 masters, local batch 2 x 8192, selective checkpointing",
        2,
        8192,
        (*_FULL, _RECOMPUTE, _WHOLE_LOGITS),
        "its selective checkpointing keeps products of matrices: more than all recomputed, less "
        "than none",
        (*_FULL, _WHOLE_LOGITS),
    ),
    Published(
        TORCHTITAN + ", Table 3",
        "Llama-3-8B",
        128,
        67.0,
        "the same on 128 GPUs",
        2,
        8192,
        (*_FULL, _RECOMPUTE, _WHOLE_LOGITS),
        "as above",
        (*_FULL, _WHOLE_LOGITS),
    ),
    Published(
        TORCHTITAN + ", Table 2",
        "Llama-3-8B",
        8,
        83.9,
        "FSDP, torch.compile, Float8, local batch 1 x 32768, full checkpointing",
        1,
        32768,
        (*_FULL, _RECOMPUTE, _WHOLE_LOGITS),
        "its products are in 8 bits, and the compiled loss may fuse copies of the logits",
    ),
    Published(
        TORCHTUNE,
        "Llama-3-70B",
        8,
        27.6,
        "LoRA, bf16, FSDP2, batch 2 x 2048, torch.compile; rank 16 and checkpointing as in its "
        "llama3_1/70B_lora.yaml",
        2,
        2048,
        (*_FULL, "adapter=lora", "adapter.rank=16", _LORA_TUNE, _RECOMPUTE),
        "its adapters and moments are bf16 and divided too",
    ),
    Published(
        TORCHTUNE,
        "Llama-3-70B",
        8,
        13.9,
        "full, all bf16, everything offloaded, batch 2 x 2048, torch.compile; checkpointing, and "
        "embeddings and output layer as units of their own, as in its llama3_1/70B_full.yaml",
        2,
        2048,
        (*_FULL, "launch.offload=all", _RECOMPUTE),
        "its gradients are reduced in bf16, and embeddings and output layer are gathered apart",
    ),
    Published(
        FSDP_QLORA,
        "Llama-2-7B",
        2,
        11.22,
        "QLoRA, FSDP, batch 4 x 2048, checkpointing",
        4,
        2048,
        (*_FULL, *_QLORA),
        "reserved, not allocated memory",
    ),
    Published(
        FSDP_QLORA,
        "Llama-2-7B",
        2,
        20.97,
        "QLoRA, FSDP, batch 10 x 2048, checkpointing",
        10,
        2048,
        (*_FULL, *_QLORA),
        "reserved, not allocated memory",
    ),
    Published(
        FSDP_QLORA,
        "Llama-2-7B",
        2,
        16.14,
        "LoRA, FSDP, batch 4 x 2048, checkpointing",
        4,
        2048,
        (*_FULL, "adapter=lora", _RECOMPUTE, _WHOLE_LOGITS),
        "reserved, not allocated memory",
    ),
)


def estimated(run: Published, words: tuple[str, ...], folder: Path) -> Estimate:
    """Estimate a published run with keys of this program."""
    tokens = run.rows * run.length
    given = [
        f"model={folder / run.shape}",
        "data=tiny",
        "data.eval=none",
        f"train.batch_size={run.rows * run.gpus}",
        f"train.micro_batch_tokens={tokens}",
        "log.sample_prompts=0",
        f"launch.processes={run.gpus}",
        *words,
    ]
    cfg = config_of("sft", given)
    device = Device("GPU", "cuda", 10**12)
    rows = Rows(longest=run.length, mean=float(run.length))
    return estimate_memory("sft", cfg, rows, device, processes=run.gpus)


def published_lines(folder: Path) -> Iterator[str]:
    """A row for each published run."""
    yield "| run | GPUs | published GiB | estimate GiB | source, and what differs |"
    yield "|---|---|---|---|---|"
    for run in RUNS:
        sizes = [estimated(run, run.words, folder)]
        sizes += [estimated(run, run.bracket, folder)] if run.bracket else []
        text = " to ".join(f"{one.total('update') / GIB:.1f}" for one in sizes)
        name = f"{run.shape}, {run.protocol}"
        yield f"| {name} | {run.gpus} | {run.gib} | {text} | {run.source}; {run.differs} |"


GPUS, CARD = 8, Device("GPU", "cuda", 80 * 10**9, stated=True)
SIZES = ("Llama-2-7B", "Qwen2.5-7B", "Llama-3-8B", "Llama-3-70B")
_LEAN = (_RECOMPUTE, "log.sample_prompts=0")
METHODS: dict[str, tuple[str, ...]] = {
    "all weights, launch.shard=none": _LEAN,
    "all weights, full": (*_FULL, *_LEAN),
    "all weights, grad_op": ("launch.shard=grad_op", *_LEAN),
    "all weights, full, offload=optimizer": (*_FULL, "launch.offload=optimizer", *_LEAN),
    "all weights, full, offload=all": (*_FULL, "launch.offload=all", *_LEAN),
    "LoRA, none": ("adapter=lora", *_LEAN),
    "LoRA, full": (*_FULL, "adapter=lora", *_LEAN),
}
STAGES: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "sft": ("sft", 1, ()),
    "dpo": ("dpo", 2, ()),
    "ppo": ("ppo", 1, ("reward.length_penalty=1", "value=shared", "sampling.max_new_tokens=512")),
}
LENGTH, TOKENS = 2048, 8192


def table_lines(folder: Path) -> Iterator[str]:
    """GB of each of 8 GPUs of 80 GB, by model, method and stage; what does not fit in brackets."""
    yield "| model | method | " + " | ".join(STAGES) + " | host GB a process |"
    yield "|---|---|" + "---|" * (len(STAGES) + 1)
    for size in SIZES:
        for method, keys in METHODS.items():
            found = [_planned(folder / size, keys, *of) for of in STAGES.values()]
            host = sum(found[0].host.values())
            cells = [_cell(one) for one in found] + [f"{host / 1e9:.0f}" if host else "-"]
            yield f"| {size} | {method} | " + " | ".join(cells) + " |"


def _planned(
    path: Path, keys: tuple[str, ...], stage: str, rows: int, own: tuple[str, ...]
) -> Estimate:
    words = [f"model={path}", "data=tiny", "data.eval=none", f"data.max_length={LENGTH}"]
    words += [f"train.micro_batch_tokens={TOKENS}", f"launch.processes={GPUS}", *keys, *own]
    cfg = config_of(stage, words)
    return estimate_memory(stage, cfg, Rows.of_config(cfg, rows), CARD, processes=GPUS)


def _cell(found: Estimate) -> str:
    size = f"{found.peak[1] / 1e9:.0f}"
    return size if found.fits else f"({size})"


def main() -> None:
    """Print published runs, or the table of 8 GPUs."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_shapes(folder)
        lines = table_lines(folder) if sys.argv[1:] == ["table"] else published_lines(folder)
        for line in lines:
            print(line, flush=True)


if __name__ == "__main__":
    main()

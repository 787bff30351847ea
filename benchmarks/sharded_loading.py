"""Host memory to load, save and merge a model of 1 GB, as a whole and in shards.

    python -m benchmarks.sharded_loading [MODEL_FOLDER]

Each line is measured in a process of its own. A rank among several is measured alone: its
parameters are cut to its rows as FSDP cuts them, and nothing is communicated. `stays` counts the
bytes of the parameters that the rank holds; `peak` is the most anonymous memory, sampled every
millisecond, and the parameters that stay mapped from their file; `with file pages` adds the pages
of the files that were read, which the system takes back when memory is short. Without a folder the
model is a Llama of 536 M parameters with random bf16 weights. About five minutes on two cores.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import SCRATCH, save
from benchmarks.load_memory import STATUS, Sampler, mapped_ranges

SHAPE = {
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 5504,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LOADS = [f"load {dtype} {ranks}" for dtype in TYPES for ranks in (0, 1, 2, 4)]
"""Type of the parameters, and number of ranks; 0 is ordinary loading."""
OTHERS = ["save ordinary", "save one by one", "merge in memory", "merge one by one"]


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else random_model(SCRATCH / "llama_1gb_bf16")
    adapter = random_adapter(folder, SCRATCH / "llama_1gb_lora")
    found = {case: measured(case, folder, adapter) for case in [*LOADS, *OTHERS]}
    print(f"{'case, MB':20}{'stays':>10}{'peak':>10}{'with file pages':>18}")
    for case, one in found.items():
        sizes = [one[name] / 1e6 for name in ("stays", "peak", "high")]
        print(f"{case:20}{sizes[0]:10.1f}{sizes[1]:10.1f}{sizes[2]:18.1f}")
    if len(sys.argv) == 1:
        save("sharded_loading", found)


def random_model(folder: Path) -> Path:
    """A model folder with random bf16 weights, in files of 300 MB, and the shipped tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from rlhf_cli.resources import shipped_model

    if not folder.exists():
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(LlamaConfig(**SHAPE))
        torch.set_default_dtype(torch.float32)
        model.save_pretrained(folder, max_shard_size="300MB")
        AutoTokenizer.from_pretrained(shipped_model()).save_pretrained(folder)
    return folder


def random_adapter(base: Path, folder: Path) -> Path:
    """A LoRA adapter of rank 16 with random values on every linear layer of a base."""
    from rlhf_cli.models.config import AdapterConfig, LoadConfig, ModelConfig
    from rlhf_cli.models.load import LoadInputs, load_policy

    if not folder.exists():
        cfg = LoadConfig(model=ModelConfig(path=str(base)), adapter=AdapterConfig(kind="lora"))
        tokenizer, ctx = _run(base)
        policy = load_policy(cfg, LoadInputs(tokenizer, ctx))
        for param in policy.parameters():
            if param.requires_grad:
                param.data.normal_(0, 0.01)
        assert policy.adapters is not None
        policy.adapters.save(folder)
        tokenizer.save_pretrained(folder)
    return folder


def _run(folder: Path) -> tuple[Any, Any]:
    from rlhf_cli.context import create_context
    from rlhf_cli.models.config import ModelConfig
    from rlhf_cli.models.tokenizer import load_tokenizer

    return load_tokenizer(ModelConfig(path=str(folder))), create_context("bf16", 0, SCRATCH)


def measured(case: str, folder: Path, adapter: Path) -> dict[str, int]:
    """Bytes that stay and the peaks of one case."""
    words = [sys.executable, "-m", "benchmarks.sharded_loading", "--case", case]
    output = subprocess.run(
        [*words, str(folder), str(adapter)], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return dict(json.loads(output.strip().rpartition("\n")[2]))


def worker(case: str, folder: Path, adapter: Path) -> None:
    """Run one case, and print its figures as JSON."""
    act, *rest = case.split()
    acts = {"load": _load, "save": _save, "merge": _merge}
    tokenizer, _ = _run(folder)
    before = _status("VmRSS")
    with Sampler() as sampler:
        kept = acts[act](*rest, folder=folder, adapter=adapter, tokenizer=tokenizer)
    sizes = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in kept}
    mapped = mapped_ranges()
    from_file = [n for at, n in sizes.items() if any(low <= at < high for low, high in mapped)]
    figures = {
        "stays": sum(sizes.values()),
        "peak": sampler.peak + sum(from_file),
        "high": _status("VmHWM") - before,
    }
    print(json.dumps(figures))


def _status(name: str) -> int:
    lines = STATUS.read_text(encoding="utf-8").split("\n")
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def _base(folder: Path, tokenizer: Any, **options: Any) -> Any:
    from rlhf_cli.models.base_model import BaseOptions, load_base_model
    from rlhf_cli.models.config import ModelConfig

    cfg = ModelConfig(path=str(folder))
    return load_base_model(cfg, str(folder), tokenizer, BaseOptions(**options))


def _load(
    dtype: str, ranks: str, *, folder: Path, tokenizer: Any, **_: object
) -> list[nn.Parameter]:
    from rlhf_cli.models.stored_weights import shard_and_read

    model = _base(folder, tokenizer, dtype=TYPES[dtype], deferred=int(ranks) > 0)
    if int(ranks):
        shard_and_read(model, lambda module: cut(module, int(ranks)), torch.device("cpu"))
    return list(model.parameters())


def cut(module: nn.Module, ranks: int) -> dict[str, Any]:
    """Cut parameters on the meta device to the rows of the first rank."""
    from rlhf_cli.distributed.shards import ShardLayout

    found = {}
    for name, param in module.named_parameters():
        rows = -(-len(param) // ranks)
        found[name] = ShardLayout(tuple(param.shape), 0, rows)
        param.data = param.data[:rows]
    return found


def _save(how: str, *_: str, folder: Path, tokenizer: Any, **__: object) -> list[Tensor]:
    """Write the fp32 weights of a model in bf16: all cast before, or one by one."""
    from rlhf_cli.models.weight_files import save_weights

    model = _base(folder, tokenizer)
    target = SCRATCH / "sharded_loading_saved"
    if how == "ordinary":
        for param in model.parameters():
            param.data = param.data.to(torch.bfloat16, copy=True)
        model.save_pretrained(target)
    else:
        save_weights(model, target, torch.bfloat16)
    return list(model.parameters())


def _merge(
    how: str, *_: str, folder: Path, adapter: Path, tokenizer: Any, **__: object
) -> list[Tensor]:
    """Compare and write base and adapter as one model, as `rlhf merge` does."""
    import shutil

    from rlhf_cli.commands import merge
    from rlhf_cli.commands.config import MergeConfig
    from rlhf_cli.models import local_base, weight_files
    from rlhf_cli.models.config import ModelConfig

    target = SCRATCH / f"sharded_loading_merged_{how}"
    shutil.rmtree(target, ignore_errors=True)
    if how == "in":  # memory: what the command did before
        options = local_base.BaseOptions
        local_base.BaseOptions = lambda **o: options(**{**o, "deferred": False})  # type: ignore
        weight_files.save_weights = lambda model, where, _: model.save_pretrained(where)  # type: ignore
    merge.run(MergeConfig(model=ModelConfig(path=str(adapter)), output_dir=str(target)))
    return []


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        worker(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        main()

"""Memory at load: the most that loading a model takes, beside the bytes that stay.

    python -m benchmarks.load_memory [MODEL_FOLDER]

Each role is loaded by a process of its own, in bf16: once without the check at load, which shows
what the weights take, and once with it. Without a folder the model is a Llama of 135 M parameters
with random bf16 weights. Anonymous memory is sampled every millisecond; weights that stay mapped
from their file, as on a CPU where the types agree, are added. A minute on two cores.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import SCRATCH, SHAPES, save

STATUS, MAPS = Path("/proc/self/status"), Path("/proc/self/maps")
"""Of Linux."""

ROLES = ("generate", "LoRA", "LoRA on nf4", "full", "full, reference copy")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else random_model(SCRATCH / "llama_135m_bf16")
    found = {role: measured(role, folder) for role in ROLES}
    print(f"{'role':24}{'stays':>10}{'peak':>10}{'ratio':>8}{'with check':>12}{'B/parameter':>14}")
    for role, one in found.items():
        stays, peak, checked = one["stays"], one["peak"], one["checked"]
        each = peak / one["parameters"]
        shown = f"{stays / 1e6:10.1f}{peak / 1e6:10.1f}{peak / stays:8.2f}{checked / 1e6:12.1f}"
        print(f"{role:24}{shown}{each:14.2f}")
    if len(sys.argv) == 1:
        save("load_memory", found)


def random_model(folder: Path) -> Path:
    """A model folder with random bf16 weights and the shipped tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from rlhf_cli.resources import shipped_model

    if not folder.exists():
        config = LlamaConfig(**SHAPES["135m"], tie_word_embeddings=True)
        LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
        AutoTokenizer.from_pretrained(shipped_model()).save_pretrained(folder)
    return folder


def measured(role: str, folder: Path) -> dict[str, int]:
    """Bytes that stay, and the peak without and with the check at load."""
    plain, checked = (_measured(role, folder, check) for check in ("unchecked", "checked"))
    return {**plain, "checked": checked["peak"]}


def _measured(role: str, folder: Path, check: str) -> dict[str, int]:
    words = [sys.executable, "-m", "benchmarks.load_memory", "--role", role, str(folder), check]
    output = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(output.strip().rpartition("\n")[2]))


def worker(role: str, folder: str, check: str) -> None:
    """Load the model for a role, and print the bytes that stay and the peak as JSON."""
    from rlhf_cli.context import create_context
    from rlhf_cli.models import load as loading
    from rlhf_cli.models.config import ModelConfig
    from rlhf_cli.models.tokenizer import load_tokenizer

    ctx = create_context("bf16", 0, SCRATCH)
    model = ModelConfig(path=folder)
    tokenizer = load_tokenizer(model)
    load(role, ModelConfig(path="tiny"), tokenizer, ctx)  # imports and buffers of libraries
    if check == "unchecked":
        loading._set_attention = lambda *_: None  # type: ignore[assignment]
    with Sampler() as sampler:
        kept = load(role, model, tokenizer, ctx)
    sizes = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in kept}
    mapped = mapped_ranges()
    from_file = [n for at, n in sizes.items() if any(low <= at < high for low, high in mapped)]
    config = json.loads((Path(folder) / "config.json").read_text())
    found = {"stays": sum(sizes.values()), "peak": sampler.peak + sum(from_file)}
    print(json.dumps({**found, "parameters": count(config)}))


def mapped_ranges() -> list[tuple[int, int]]:
    """Addresses at which files of weights are mapped into this process."""
    lines = MAPS.read_text(encoding="utf-8").split("\n")
    ranges = [line.split()[0].split("-") for line in lines if line.endswith(".safetensors")]
    return [(int(low, 16), int(high, 16)) for low, high in ranges]


def count(config: dict[str, Any]) -> int:
    """Parameters of the model of a config, without making it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    return sum(param.numel() for param in model.parameters())


def load(role: str, model: Any, tokenizer: Any, ctx: Any) -> list[Tensor]:
    """Every tensor that stays in memory for a role."""
    from rlhf_cli.models.config import AdapterConfig, LoadConfig, QuantConfig
    from rlhf_cli.models.load import LoadInputs, load_generator, load_policy
    from rlhf_cli.models.parameters import frozen_copy
    from rlhf_cli.train.config import TrainConfig
    from rlhf_cli.train.optim import MasterAdamW

    if role == "generate":
        return list(tensors(load_generator(model, QuantConfig(), LoadInputs(tokenizer, ctx))))
    adapter = AdapterConfig(kind="lora" if role.startswith("LoRA") else "none")
    quant = QuantConfig(kind="nf4" if role.endswith("nf4") else "none")
    cfg = LoadConfig(model=model, adapter=adapter, quant=quant)
    policy = load_policy(cfg, LoadInputs(tokenizer, ctx))
    reference = frozen_copy(policy, ctx.compute) if role.endswith("copy") else None
    optimizer = MasterAdamW(policy, TrainConfig(), ctx.compute)
    KEPT.append((policy, reference, optimizer))
    others = tensors(reference) if reference is not None else iter(())
    return [*tensors(policy), *others, *optimizer.masters.values()]


KEPT: list[Any] = []
"""Nothing that was loaded is freed before it is measured."""


def tensors(module: Any) -> Iterator[Tensor]:
    """Parameters, what packed ones bring beside their values, and buffers."""
    KEPT.append(module)
    for param in module.parameters():
        yield param.data
        state = getattr(param, "quant_state", None)
        for part in (state, getattr(state, "state2", None)):
            yield from (value for value in vars(part or object).values() if is_tensor(value))
    yield from module.buffers()


is_tensor: Callable[[Any], bool] = torch.is_tensor


class Sampler:
    """Samples this process's anonymous memory while it is open.

    Attributes:
        peak: bytes, beside what was held at first.
    """

    def __enter__(self) -> "Sampler":
        self.start = self.highest = anonymous_bytes()
        self.open = True
        self.thread = threading.Thread(target=self._sample)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.open = False
        self.thread.join()
        self.peak = max(self.highest, anonymous_bytes()) - self.start

    def _sample(self) -> None:
        while self.open:
            self.highest = max(self.highest, anonymous_bytes())
            time.sleep(0.001)


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    lines = STATUS.read_text(encoding="utf-8").split("\n")
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--role"]:
        worker(*sys.argv[2:])
    else:
        main()

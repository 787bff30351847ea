"""Memory of the recipes of models from the hub, and the table of docs/hardware.md, both estimated.

python -m benchmarks.recipe_memory           # a line for each recipe, as its header says
python -m benchmarks.recipe_memory table     # the table of docs/hardware.md

Nothing is fetched or loaded: the sizes of the models stand below, as in their `config.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rlhf_cli.config.args import parse
from rlhf_cli.console import muted
from rlhf_cli.memory.device import Device
from rlhf_cli.memory.estimate import estimate_memory
from rlhf_cli.memory.parts import Estimate, Rows
from rlhf_cli.registry import COMMANDS
from rlhf_cli.resolve import resolve

SHAPES: dict[str, dict[str, Any]] = {
    "Qwen2.5-0.5B": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
    "Qwen2.5-1.5B": {
        "model_type": "qwen2",
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "vocab_size": 151936,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
    "Pythia-1.4B": {
        "model_type": "gpt_neox",
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 8192,
        "vocab_size": 50304,
        "max_position_embeddings": 2048,
    },
    "GPT-Neo-2.7B": {
        "model_type": "gpt_neo",
        "hidden_size": 2560,
        "num_layers": 32,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "intermediate_size": 6827,  # of three matrices, as many parameters as its two of 10240
        "vocab_size": 50257,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "RoBERTa-base": {
        "model_type": "roberta",
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "vocab_size": 50265,
        "max_position_embeddings": 514,
        "id2label": {"0": "nothate", "1": "hate"},
    },
    "Llama-2-7B": {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    },
    "Mistral-7B": {
        "model_type": "mistral",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
    },
    "Llama-3-8B": {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
    },
    "Llama-3-70B": {
        "model_type": "llama",
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "intermediate_size": 28672,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
    },
    "Qwen2.5-7B": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "vocab_size": 152064,
        "max_position_embeddings": 131072,
    },
    "Llama-2-13B": {
        "model_type": "llama",
        "hidden_size": 5120,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "intermediate_size": 13824,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    },
}
"""Model -> its config, as far as the memory depends on it."""

REWARD, CLASSIFIER = "REWARD", "CLASSIFIER"
"""Stand for the folders of a reward model of the policy's shape, and of the classifier of detox."""

_INT8, _NF4 = ("adapter=lora", "quant=int8"), ("adapter=lora", "quant=nf4")
"""In place of the adapter that an earlier step of the chain leaves."""


@dataclass(frozen=True)
class Recipe:
    """A recipe whose model is on the hub, and what its chain passes to it."""

    name: str
    stage: str
    shape: str
    gigabytes: int
    """Memory of the GPU that its header names."""

    extra: tuple[str, ...] = ()
    rows: int = 1
    """Rows of an example."""


RECIPES = (
    Recipe("bco_thumbs/bco", "bco", "Qwen2.5-0.5B", 24),
    Recipe(
        "detox/ppo", "ppo", "GPT-Neo-2.7B", 80, ("data=tiny", f"reward.classifier={CLASSIFIER}")
    ),
    Recipe("instructgpt/pretrain", "pretrain", "Pythia-1.4B", 80),
    Recipe("instructgpt/sft", "sft", "Pythia-1.4B", 80),
    Recipe("instructgpt/reward", "reward", "Pythia-1.4B", 80, ("data=tiny",), rows=7),
    Recipe("instructgpt/ppo", "ppo", "Pythia-1.4B", 80, (f"reward.model={REWARD}", "value=model")),
    Recipe("r1_zero/grpo", "grpo", "Qwen2.5-1.5B", 80),
    Recipe("stack_llama/sft", "sft", "Llama-2-7B", 80),
    Recipe("stack_llama/reward", "reward", "Llama-2-7B", 80, _INT8, rows=2),
    Recipe(
        "stack_llama/ppo", "ppo", "Llama-2-7B", 80, (*_INT8, "reward.function=tiny/judge.py:score")
    ),
    Recipe("stack_llama_2/sft", "sft", "Llama-2-7B", 24),
    Recipe("stack_llama_2/dpo", "dpo", "Llama-2-7B", 24, _NF4, rows=2),
    Recipe("zephyr/sft", "sft", "Mistral-7B", 80),
    Recipe("zephyr/sft", "sft", "Mistral-7B", 80, ("config=zephyr/sharded",)),
    Recipe("zephyr/sft", "sft", "Mistral-7B", 24, ("config=zephyr/qlora",)),
    Recipe("zephyr/dpo", "dpo", "Mistral-7B", 80, rows=2),
    Recipe("zephyr/dpo", "dpo", "Mistral-7B", 80, ("config=zephyr/sharded",), rows=2),
    Recipe("zephyr/dpo", "dpo", "Mistral-7B", 24, ("config=zephyr/qlora", "adapter=lora"), rows=2),
)


def config_of(stage: str, words: list[str]) -> Any:
    """Compose and check the configuration of a stage."""
    command = COMMANDS[stage]
    with muted():
        return resolve(command, parse(command, words)).config


def write_shapes(folder: Path) -> None:
    """Write a folder with a `config.json` for each shape, and one of a reward model beside it."""
    for name, config in SHAPES.items():
        for path, kind in ((name, "CausalLM"), (f"{name}-reward", "ForSequenceClassification")):
            (folder / path).mkdir()
            named = {"id2label": {"0": "score"}, "architectures": [kind], "dtype": "bfloat16"}
            text = json.dumps({**named, **config})
            (folder / path / "config.json").write_text(text, encoding="utf-8")


def with_folders(words: tuple[str, ...], path: Path) -> list[str]:
    """Put folders in place of `REWARD` and `CLASSIFIER`."""
    classifier = f"{path.parent / 'RoBERTa-base'}-reward"
    return [w.replace(REWARD, f"{path}-reward").replace(CLASSIFIER, classifier) for w in words]


def estimate_recipe(recipe: Recipe, folder: Path, tokens: int = 0) -> Estimate:
    """Estimate a recipe on the GPU of its header; every row is as long as its `data.max_length`.

    Args:
        recipe: to estimate.
        folder: with the shapes.
        tokens: of a pass; 0 takes those that a run would choose.
    """
    path = folder / recipe.shape
    words = [f"config={recipe.name}", f"model.path={path}", *with_folders(recipe.extra, path)]
    cfg = config_of(recipe.stage, words)
    device = Device("GPU", "cuda", recipe.gigabytes * 10**9, stated=True)
    rows = Rows.of_config(cfg, recipe.rows)
    processes = cfg.launch.processes
    return estimate_memory(
        recipe.stage, cfg, rows, device, processes=processes, micro_batch_tokens=tokens
    )


SMALL_PASS = 2048
"""Tokens of a pass that every recipe can be run with."""


def recipe_lines(folder: Path) -> Iterator[str]:
    """A line for each recipe: its peak with the tokens a pass that are chosen, and with few."""
    for recipe in RECIPES:
        chosen, few = estimate_recipe(recipe, folder), estimate_recipe(recipe, folder, SMALL_PASS)
        name = " ".join([recipe.name, *(w for w in recipe.extra if w.startswith("config="))])
        fits = "fits" if chosen.fits else "does not fit"
        yield (
            f"{name:30} {recipe.shape:13} {chosen.peak[1] / 1e9:5.1f} GB ({chosen.peak[0]}) with "
            f"{chosen.micro_batch_tokens:6,} tokens a pass, {few.peak[1] / 1e9:5.1f} GB "
            f"({few.peak[0]}) with {SMALL_PASS:,}; {fits} {recipe.gigabytes} GB"
        )


METHODS: dict[str, tuple[str, ...]] = {
    "all weights": (),
    "all weights, checkpointing": ("train.gradient_checkpointing=true",),
    "LoRA": ("adapter=lora",),
    "LoRA, checkpointing": ("adapter=lora", "train.gradient_checkpointing=true"),
    "QLoRA, checkpointing": ("adapter=lora", "quant=nf4", "train.gradient_checkpointing=true"),
}
STAGES: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "sft": ("sft", 1, ()),
    "dpo": ("dpo", 2, ()),
    "ppo, value=shared": ("ppo", 1, (f"reward.model={REWARD}", "value=shared")),
    "ppo, value=model": ("ppo", 1, (f"reward.model={REWARD}", "value=model")),
}
"""Column -> stage, rows of an example, and its keys."""

SIZES = ("Qwen2.5-0.5B", "Qwen2.5-1.5B", "Llama-3-8B", "Llama-2-13B")
LENGTH, TOKENS, PROCESSOR = 1024, 4096, Device("GPU", "cuda", 10**12)


def table_lines(folder: Path) -> Iterator[str]:
    """The table of docs/hardware.md: GB of each model and method, by stage."""
    yield "| model | trained | " + " | ".join(STAGES) + " |"
    yield "|---|---|" + "---|" * len(STAGES)
    for size in SIZES:
        for method, keys in METHODS.items():
            cells = [_cell(folder / size, keys, *of) for of in STAGES.values()]
            yield f"| {size} | {method} | " + " | ".join(cells) + " |"


def _cell(path: Path, keys: tuple[str, ...], stage: str, rows: int, own: tuple[str, ...]) -> str:
    words = [f"model={path}", "data=tiny", "data.eval=none", *keys, *with_folders(own, path)]
    words += [f"data.max_length={LENGTH}", f"train.micro_batch_tokens={TOKENS}"]
    if stage == "ppo":
        words.append("sampling.max_new_tokens=512")
    cfg = config_of(stage, words)
    found = estimate_memory(stage, cfg, Rows.of_config(cfg, rows), PROCESSOR)
    return f"{found.peak[1] / 1e9:.0f}" if found.peak[1] > 1e10 else f"{found.peak[1] / 1e9:.1f}"


def main() -> None:
    """Print the lines of the recipes, or the table."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_shapes(folder)
        lines = table_lines(folder) if sys.argv[1:] == ["table"] else recipe_lines(folder)
        for line in lines:
            print(line, flush=True)


if __name__ == "__main__":
    main()

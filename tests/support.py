"""What can be trained with what: the cells of docs/support.md, what tests found, and the page.

    RLHF_SUPPORT=write pytest tests/test_support.py    # records what is found in tests/support.json
    python -m tests.support > docs/support.md          # writes the page from that file

Each cell is a test of tests/test_support.py, which compares what it finds with the file.
"""

import json
import os
import platform
from collections.abc import Collection, Iterable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path

FILE = Path(__file__).with_suffix(".json")

Words = tuple[str, ...]

STAGES: dict[str, Words] = {
    "pretrain": (),
    "sft": (),
    "reward": (),
    "dpo": (),
    "bco": (),
    "distill": ("teacher=tiny", "max_new_tokens=4"),
    "ppo": ("reward.length_penalty=1", "max_new_tokens=4", "ppo_epochs=1"),
}

WEIGHTS: dict[str, Words] = {
    "full": (),
    "LoRA": ("adapter=lora",),
    "DoRA": ("adapter=dora",),
    "QLoRA nf4": ("adapter=lora", "quant=nf4"),
    "QLoRA int8": ("adapter=lora", "quant=int8"),
}

ON_TWO = ("full", "LoRA", "QLoRA nf4")
"""The weights that are tested on two processes."""

ARCHITECTURES = {
    "Llama": "model_type: llama",
    "GPT-2": "model_type: gpt2, n_embd: 64, n_layer: 2, n_head: 2",
    "GPT-NeoX": "model_type: gpt_neox",
    "Gemma-2": "model_type: gemma2, head_dim: 16",
    "Mistral, sliding window": "model_type: mistral, sliding_window: 8, num_key_value_heads: 2",
    "Qwen-2": "model_type: qwen2, num_key_value_heads: 2",
}

SIZE = "hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 128"

OF_ARCHITECTURES = {
    "sft, full": ("sft", "full"),
    "sft, LoRA": ("sft", "LoRA"),
    "sft, QLoRA nf4": ("sft", "QLoRA nf4"),
    "reward, LoRA": ("reward", "LoRA"),
    "dpo, LoRA": ("dpo", "LoRA"),
    "ppo, full": ("ppo", "full"),
    "ppo, LoRA": ("ppo", "LoRA"),
}

REFUSED: dict[str, tuple[Words, str]] = {
    "4-bit weights without an adapter": (("sft", "quant=nf4"), "quant.kind"),
    "8-bit weights without an adapter": (
        ("ppo", "quant=int8", "reward.length_penalty=1"),
        "quant.kind",
    ),
    "a quantized output layer without quantization": (
        ("sft", "adapter=lora", "quant=none", "quant.output_layer=true"),
        "quant.output_layer",
    ),
    "a quantized output layer of a reward model": (
        ("reward", "adapter=lora", "quant=nf4", "quant.output_layer=true"),
        "quant.output_layer",
    ),
    "adapter settings without an adapter": (("dpo", "adapter.rank=8"), "adapter.rank"),
    "frozen layers with an adapter": (
        ("sft", "adapter=lora", "model.freeze=[norm]"),
        "model.freeze",
    ),
    "stacking on an adapter that does not exist": (
        ("bco", "adapter.start=stack", "adapter=lora"),
        "adapter.start",
    ),
    "`adapter_off` as reference in full training": (
        ("dpo", "model.reference=adapter_off"),
        "model.reference",
    ),
    "a value adapter with a fully trained policy": (
        ("ppo", "value=adapter", "reward.length_penalty=1"),
        "value",
    ),
    "a paged optimizer on a CPU": (("sft", "train.optimizer=paged_adamw"), "train.optimizer"),
    "flash attention that is not installed": (
        ("sft", "model.attention=flash_attention_3"),
        "model.attention",
    ),
    "liger kernels on a CPU": (("sft", "kernels=[liger]"), "kernels"),
    "compiled layers with gradient checkpointing": (
        ("sft", "train.compile=true", "train.gradient_checkpointing=true"),
        "train.compile",
    ),
    "more processes than cores": (("sft", "launch.processes=4096"), "launch.processes"),
}


def architecture(name: str) -> Words:
    """Words for random weights of a small model."""
    shape = ARCHITECTURES[name]
    size = "" if "n_embd" in shape else f", {SIZE}"
    return ("model.init=scratch", "model.tokenizer=tiny", f"model.architecture={{{shape}{size}}}")


def check(table: str, cell: str, found: str) -> None:
    """Compare what a test found with the file; with RLHF_SUPPORT=write, record it there."""
    if os.environ.get("RLHF_SUPPORT") == "write":
        stored = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
        entry = {"found": found, "date": date.today().isoformat(), "with": versions()}
        stored.setdefault(table, {})[cell] = entry
        text = json.dumps(stored, indent=1, sort_keys=True, ensure_ascii=False)
        FILE.write_text(text + "\n", encoding="utf-8")
    assert found == stored_results()[table][cell]["found"]


def stored_results() -> dict[str, dict[str, dict[str, str]]]:
    """Table -> cell -> what was found there, when, and with which versions."""
    results: dict[str, dict[str, dict[str, str]]] = json.loads(FILE.read_text(encoding="utf-8"))
    return results


def versions() -> str:
    """Python and the libraries that decide what works."""
    names = ("torch", "transformers", "peft", "bitsandbytes")
    return ", ".join([f"Python {platform.python_version()}", *(f"{n} {version(n)}" for n in names)])


def page() -> str:
    """docs/support.md."""
    return "\n".join(_lines(stored_results())) + "\n"


def _lines(stored: dict[str, dict[str, dict[str, str]]]) -> Iterator[str]:
    entries = [entry for table in stored.values() for entry in table.values()]
    days = sorted({entry["date"] for entry in entries})
    yield "# Supported combinations"
    yield ""
    yield "These tables show what tests found on a CPU, with small models. `yes` is a run that"
    yield "trained, saved its result and loaded it with transformers or PEFT alone. `no` is a"
    yield "run that was refused before anything was loaded, with the key that the error names."
    yield "No GPU was tested."
    yield ""
    when = f"on {days[0]}" if len(days) == 1 else f"from {days[0]} to {days[-1]}"
    yield f"Tested {when} with:"
    yield ""
    yield from sorted({f"- {entry['with']}" for entry in entries})
    yield ""
    yield "## Stages"
    yield ""
    yield from _table("stage", STAGES, WEIGHTS, stored["stages"])
    yield ""
    yield "On two processes:"
    yield ""
    yield from _table("stage", STAGES, ON_TWO, stored["two processes"])
    yield ""
    yield "## Architectures"
    yield ""
    yield from _table("architecture", ARCHITECTURES, OF_ARCHITECTURES, stored["architectures"])
    yield ""
    yield "Other architectures are checked when they are loaded: log-probs and gradients must"
    yield "equal those of the model's own forward pass, or the run is refused."
    yield ""
    yield "## Refused combinations"
    yield ""
    yield "Each is refused with exit code 2 before a model is loaded. The error suggests a fix."
    yield ""
    yield "| combination | command | key in the error |"
    yield "|---|---|---|"
    for what, ((stage, *words), _) in REFUSED.items():
        entry = stored["refused"][what]
        command = " ".join(["rlhf", stage, *words])
        yield f"| {what} | `{command}` | `{entry['found']}` |"
    yield ""
    yield "## Reproducing the tables"
    yield ""
    yield "`tests/test_support.py` has one test per cell; `make test-all` runs all of them and"
    yield "compares each with `tests/support.json`. To record new results and print this page:"
    yield ""
    yield "```sh"
    yield "RLHF_SUPPORT=write pytest tests/test_support.py"
    yield "python -m tests.support"
    yield "```"


def _table(
    corner: str,
    rows: Iterable[str],
    columns: Collection[str],
    stored: dict[str, dict[str, str]],
) -> Iterator[str]:
    yield f"| {corner} | {' | '.join(columns)} |"
    yield f"|{'---|' * (len(columns) + 1)}"
    for row in rows:
        cells = [stored.get(f"{row} / {column}") for column in columns]
        yield f"| {row} | {' | '.join(cell['found'] if cell else 'not run' for cell in cells)} |"


if __name__ == "__main__":
    print(page(), end="")

"""What is trained with what: the cells of docs/support.md, and the page itself.

    python -m tests.support > docs/support.md

Each cell is a test of tests/test_support.py, which also holds the page to what stands here.
"""

from collections.abc import Collection, Iterable, Iterator

Words = tuple[str, ...]

STAGES: dict[str, Words] = {
    "pretrain": (),
    "sft": (),
    "reward": (),
    "dpo": (),
    "bco": (),
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
"""Of the weights, those that are tried on two processes."""

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
    "packed weights without an adapter": (
        ("sft", "quant=nf4"),
        "quant.kind: got nf4 with full training",
    ),
    "packed weights in 8 bits without an adapter": (
        ("ppo", "quant=int8", "reward.length_penalty=1"),
        "quant.kind: got int8 with full training",
    ),
    "a packed output layer under whole weights": (
        ("sft", "adapter=lora", "quant=none", "quant.output_layer=true"),
        "quant.output_layer: got true with quant.kind=none",
    ),
    "a packed output layer of a reward model": (
        ("reward", "adapter=lora", "quant=nf4", "quant.output_layer=true"),
        "quant.output_layer: got true for a reward model",
    ),
    "an adapter's settings without an adapter": (
        ("dpo", "adapter.rank=8"),
        "adapter.rank: given with adapter.kind=none",
    ),
    "frozen layers beside an adapter": (
        ("sft", "adapter=lora", "model.freeze=[norm]"),
        "model.freeze: got norm beside an adapter",
    ),
    "a start from an adapter where there is none": (
        ("bco", "adapter.start=stack", "adapter=lora"),
        "adapter.start: got stack, but model.path=tiny brings no adapter",
    ),
    "the weights without their adapter as reference of full training": (
        ("dpo", "model.reference=adapter_off"),
        "model.reference: got adapter_off with adapter.kind=none",
    ),
    "a value adapter beside a fully trained policy": (
        ("ppo", "value=adapter", "reward.length_penalty=1"),
        "value: got adapter with adapter.kind=none",
    ),
    "moments paged out of a GPU on a CPU": (
        ("sft", "train.optimizer=paged_adamw"),
        "train.optimizer: got paged_adamw",
    ),
    "flash attention where it is not installed": (
        ("sft", "model.attention=flash_attention_3"),
        "model.attention: got flash_attention_3, but flash_attn_interface is not installed",
    ),
    "layers in Triton on a CPU": (
        ("sft", "kernels=[liger]"),
        "kernels: got liger, which cannot run here (needs CUDA)",
    ),
    "layers both compiled and recomputed": (
        ("sft", "train.compile=true", "train.gradient_checkpointing=true"),
        "train.compile: got true beside train.gradient_checkpointing=true",
    ),
    "more processes than cores": (
        ("sft", "launch.processes=4096"),
        "launch.processes: got 4096",
    ),
}


def architecture(name: str) -> Words:
    """Words for random weights of a small model."""
    shape = ARCHITECTURES[name]
    size = "" if "n_embd" in shape else f", {SIZE}"
    return ("model.init=scratch", "model.tokenizer=tiny", f"model.architecture={{{shape}{size}}}")


def page() -> str:
    """docs/support.md."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# What is trained with what"
    yield ""
    yield "Each `yes` is a run of the command line on a small model on a CPU, each `no` a line that"
    yield "refuses before anything is loaded; all are tests of `tests/test_support.py`, which also"
    yield "writes this page (`python -m tests.support`). A GPU has not been tried."
    yield ""
    yield "## Stages and weights"
    yield ""
    yield "`test_trains[STAGE-WEIGHTS]`:"
    yield ""
    yield from _table("stage", STAGES, WEIGHTS)
    yield ""
    yield "On two processes, `test_trains_on_two_processes[STAGE-WEIGHTS]` (`make test-all`):"
    yield ""
    yield from _table("stage", STAGES, ON_TWO)
    yield ""
    yield "## Architectures"
    yield ""
    yield "`test_trains_architecture[ARCHITECTURE-COLUMN]`:"
    yield ""
    yield from _table("architecture", ARCHITECTURES, OF_ARCHITECTURES)
    yield ""
    yield "Others are probed when they are loaded: log-probs and gradients must equal those of the"
    yield "model's own forward pass, or the run is refused."
    yield ""
    yield "## What is refused"
    yield ""
    yield "`test_refuses[WHAT]`:"
    yield ""
    yield "| what | the line begins with |"
    yield "|---|---|"
    yield from (f"| {what} | `{line}` |" for what, (_, line) in REFUSED.items())


def _table(corner: str, rows: Iterable[str], columns: Collection[str]) -> Iterator[str]:
    yield f"| {corner} | {' | '.join(columns)} |"
    yield f"|{'---|' * (len(columns) + 1)}"
    for row in rows:
        yield f"| {row} |{' yes |' * len(columns)}"


if __name__ == "__main__":
    print(page(), end="")
